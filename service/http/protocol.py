"""The HTTP protocol of the server: uvicorn's, with limits of size and time for what comes before a body.

uvicorn itself keeps a request line and headers of any size, and waits for their end for any time, before the
application sees the request. What it refuses is answered as a problem, like everything else.
"""

import asyncio
from typing import Final
from uuid import uuid4

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from service.http.problems import make_problem, problem_response

MAX_HEAD_BYTES: Final = 2**16
"""Most bytes of a request line with its headers: an id of 4,096 characters takes up to 49,152 of them."""
HEAD_TIMEOUT_S: Final = 30.0
"""Seconds in which they have to arrive, once the connection is open or the first of their bytes is there."""


class BoundedHttpProtocol(HttpToolsProtocol):
    """Closes connections whose request line and headers are too long or too slow."""

    _head_bytes = 0
    _is_head_too_large = False
    _head_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._start_timer()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_timer()
        super().connection_lost(exc)

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._head_bytes = 0
        if self._head_timer is None:
            self._start_timer()

    def on_url(self, url: bytes) -> None:
        self._count(len(url))
        super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        self._count(len(name) + len(value))
        super().on_header(name, value)

    def on_headers_complete(self) -> None:
        self._stop_timer()
        super().on_headers_complete()

    def data_received(self, data: bytes) -> None:
        was_incomplete = self._head_timer is not None
        super().data_received(data)
        # The parser keeps a header of which the end is missing to itself.
        if was_incomplete and self._head_timer is not None and not self.transport.is_closing():
            self._head_bytes += len(data)
            if self._head_bytes > 2 * MAX_HEAD_BYTES:
                self._is_head_too_large = True
                self.send_400_response("")

    def send_400_response(self, msg: str) -> None:
        """Refuses what is not HTTP, or too large, and closes the connection."""
        code, detail = "bad_request", msg
        if self._is_head_too_large:
            code, detail = (
                "head_too_large",
                f"expected at most {MAX_HEAD_BYTES:,} bytes of address and headers",
            )
        response = problem_response(make_problem(code, detail, uuid4().hex), {"Connection": "close"})
        lines = [f"HTTP/1.1 {response.status_code} \r\n".encode()]
        lines += [name + b": " + value + b"\r\n" for name, value in response.raw_headers]
        self.transport.write(b"".join([*lines, b"\r\n", bytes(response.body)]))
        self.transport.close()

    def _count(self, size: int) -> None:
        self._head_bytes += size
        if self._head_bytes > MAX_HEAD_BYTES:
            self._is_head_too_large = True
            raise ValueError("the head of the request is too large")  # the parser has the connection refused

    def _start_timer(self) -> None:
        self._head_timer = self.loop.call_later(HEAD_TIMEOUT_S, self._close)

    def _stop_timer(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _close(self) -> None:
        self._head_timer = None
        self.transport.close()
