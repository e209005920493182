"""Connections of the web process: how long a client may take to send and to read, and how many there may be.

uvicorn alone waits without end for the rest of a request's head, however large it has become, for the first request of
a connection, and for clients that do not read their answers. Bodies that come too slowly are cut by
`service.http.bodies.slow_bodies`.
"""

import asyncio
import logging
import resource
import time
from functools import partial
from typing import Any, Final, cast
from uuid import uuid4

import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle
from uvicorn.server import Server

from service.http.problems import make_problem, problem_response
from service.http.server_socket import MAX_PENDING_CONNECTIONS
from service.settings import ServiceSettings

logger = logging.getLogger(__name__)

MAX_HEAD_BYTES: Final = 64 * 2**10
"""Largest size of a request's head, which is its first line and its headers."""
PROGRESS_BYTES: Final = 64 * 2**10
"""What a client has to send of a body, or to read of an answer, within `client_timeout_s`, unless it is less."""
MAX_PIPELINED: Final = 16
"""Most requests that a client may send on one connection before the first of them is answered."""
SPARE_CONNECTIONS = MAX_PENDING_CONNECTIONS
"""Connections that may be open beyond one for each open request. They are as many as may come at once, so that none is
cut whose request has arrived and was not read yet."""
_RESERVED_FILES: Final = 512
"""File descriptors for Redis, event streams and the files of indexes."""


def make_server_config(app: ASGIApp, settings: ServiceSettings) -> uvicorn.Config:
    """Returns the configuration of a server of `app` whose connections are those of this module."""
    return uvicorn.Config(
        app,
        lifespan="on",
        ws="none",
        proxy_headers=False,
        server_header=False,
        access_log=False,
        log_config=None,
        timeout_graceful_shutdown=settings.shutdown_s,
        http=cast("type[asyncio.Protocol]", partial(Connection, settings=settings)),
    )


def raise_file_limit(settings: ServiceSettings) -> None:
    """Allows this process as many file descriptors as it may need, or warns that the system does not let it."""
    allowed, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = settings.max_open_requests + SPARE_CONNECTIONS + _RESERVED_FILES
    limit = needed if most == resource.RLIM_INFINITY else min(needed, most)
    if resource.RLIM_INFINITY != allowed < limit:
        resource.setrlimit(resource.RLIMIT_NOFILE, (limit, most))
    if limit < needed:
        logger.warning(
            "this process may open %d files, and BERGSON_MAX_OPEN_REQUESTS=%d needs %d: raise the limit (ulimit -n), "
            "or lower the setting",
            *(most, settings.max_open_requests, needed),
        )


class Connection(HttpToolsProtocol):
    """A connection that is closed when its client takes too long, and whose requests have heads of bounded size.

    `cut_if_slow` has to be called once a second or so.
    """

    def __init__(self, *arguments: Any, settings: ServiceSettings, **options: Any):
        super().__init__(*arguments, **options)
        self._timeout_s = settings.client_timeout_s
        self._max_connections = settings.max_open_requests + SPARE_CONNECTIONS
        self._waiting_since = self._unread_since = 0.0
        self._is_reading_head = False
        self._head_bytes = self._unread_bytes = 0
        # The request that is being answered; `cycle` is the latest one, which may wait for others.
        self._current: RequestResponseCycle | None = None

    def connection_made(self, transport: Any) -> None:
        """Takes a new connection, in whose place the one that has waited longest for a request goes if need be."""
        super().connection_made(transport)
        self._waiting_since = time.monotonic()
        if len(self.connections) > self._max_connections:
            waiting = [
                other for other in self.connections if isinstance(other, Connection) and other.is_waiting
            ]
            min(waiting, key=lambda other: other._waiting_since).transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        """Tells the request that is being answered that its client has gone."""
        if self._current is not None and not self._current.response_complete:
            self._current.disconnected = True
            self._current.message_event.set()
        self.pipeline.clear()
        super().connection_lost(exc)

    @property
    def is_waiting(self) -> bool:
        """Whether the service waits for the head of the next request."""
        return self.cycle is None or (self.cycle.response_complete and not self.pipeline)

    def data_received(self, data: bytes) -> None:
        """Parses what has arrived."""
        continues_head = self._is_reading_head
        super().data_received(data)
        if continues_head and self._is_reading_head and not self.transport.is_closing():
            self._head_bytes += len(data)
            if self._head_bytes > MAX_HEAD_BYTES:
                self.send_400_response("the head is too large")

    def on_message_begin(self) -> None:
        """Begins a request."""
        self._is_reading_head, self._head_bytes = True, 0
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        """Starts the request whose head is complete."""
        self._is_reading_head = False
        self._head_bytes = len(self.url) + sum(len(name) + len(value) for name, value in self.headers)
        if self._head_bytes > MAX_HEAD_BYTES or len(self.pipeline) >= MAX_PIPELINED:
            raise ValueError  # the parser stops, and `data_received` calls `send_400_response`
        starts_now = self.is_waiting
        super().on_headers_complete()
        if starts_now:
            self._current = self.cycle

    def on_response_complete(self) -> None:
        """Starts the next request if it is there already, and otherwise waits for it."""
        self._waiting_since = time.monotonic()
        if self.pipeline:
            self._current, _ = self.pipeline[-1]
        super().on_response_complete()

    def send_400_response(self, msg: str) -> None:
        """Refuses what is no request of HTTP/1.1 or is too large, and closes the connection."""
        if (
            self._current is not None
            and self._current.response_started
            and not self._current.response_complete
        ):
            self.transport.abort()  # an answer is being sent, which this one must not interrupt
            return
        code, detail = "bad_request", "expected a request of HTTP/1.1"
        if self._head_bytes > MAX_HEAD_BYTES:
            code = "head_too_large"
            detail = f"expected a first line and headers of at most {MAX_HEAD_BYTES:,} bytes in all"
        elif len(self.pipeline) >= MAX_PIPELINED:
            detail = f"expected at most {MAX_PIPELINED} requests before the first is answered"
        response = problem_response(make_problem(code, detail, uuid4().hex), {"Connection": "close"})
        lines = [name + b": " + value + b"\r\n" for name, value in response.raw_headers]
        self.transport.write(b"".join([STATUS_LINE[response.status_code], *lines, b"\r\n", response.body]))
        self.transport.close()

    def cut_if_slow(self) -> None:
        """Closes the connection if its client has taken too long to send a head or to read an answer."""
        now, unread_bytes = time.monotonic(), self.transport.get_write_buffer_size()
        if not self._unread_bytes or unread_bytes <= self._unread_bytes - PROGRESS_BYTES:
            self._unread_bytes, self._unread_since = unread_bytes, now
        # What is written meanwhile is no progress of the client.
        self._unread_bytes = max(unread_bytes, self._unread_bytes) if unread_bytes else 0
        is_slow_reader = bool(unread_bytes) and now - self._unread_since > self._timeout_s
        is_slow_writer = self.is_waiting and now - self._waiting_since > self._timeout_s
        if is_slow_reader or is_slow_writer:
            action = "read an answer" if is_slow_reader else "sent a request"
            logger.info("connection from %s closed: it has not %s in time", self.client, action)
            self.transport.abort()


def cut_slow_connections(server: Server) -> None:
    """Closes the connections of a server whose clients have taken too long."""
    for connection in list(server.server_state.connections):
        if isinstance(connection, Connection):
            connection.cut_if_slow()
