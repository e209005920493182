"""Bodies that come too slowly are refused, and so are large ones while too many of them are in memory.

`service.http.middleware.BodyLimitMiddleware` limits the size of each.
"""

import asyncio
import time
from typing import Final

from fastapi import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.http.connections import PROGRESS_BYTES

_BODIES_IN_MEMORY: Final = 8
"""Bodies of the largest size that may be in memory at once."""


class SlowBodyMiddleware:
    """Refuses a body of which less than `PROGRESS_BYTES` has come within `timeout_s`, though there is more to come.

    The bodies of all open requests may take as much memory as a few of the largest size. What goes beyond is refused;
    small bodies, of up to `PROGRESS_BYTES`, never are.

    Args:
        app: The application.
        timeout_s: Seconds for the next `PROGRESS_BYTES`.
        limit_bytes: Largest size of a body.
    """

    def __init__(self, app: ASGIApp, timeout_s: float, limit_bytes: int) -> None:
        self.app = app
        self.timeout_s, self.limit_bytes = timeout_s, _BODIES_IN_MEMORY * limit_bytes
        self.large_bytes = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        received_bytes, own_large_bytes, is_complete = 0, 0, False
        next_bytes, deadline = PROGRESS_BYTES, time.monotonic() + self.timeout_s

        async def receive_in_time() -> Message:
            nonlocal received_bytes, own_large_bytes, is_complete, next_bytes, deadline
            if is_complete:
                return await receive()  # waits until the client disconnects
            try:
                async with asyncio.timeout(deadline - time.monotonic()):
                    message = await receive()
            except TimeoutError:
                raise self._make_timeout_error() from None
            received_bytes += len(message.get("body", b""))
            if received_bytes >= next_bytes:
                next_bytes, deadline = received_bytes + PROGRESS_BYTES, time.monotonic() + self.timeout_s
            growth = max(0, received_bytes - PROGRESS_BYTES) - own_large_bytes
            if growth and self.large_bytes + growth > self.limit_bytes:
                detail = "the bodies of other requests take all memory for bodies: try again in a second"
                raise HTTPException(429, detail, {"Connection": "close", "Retry-After": "1"})
            self.large_bytes += growth
            own_large_bytes += growth
            is_complete = not message.get("more_body", False)
            return message

        try:
            await self.app(scope, receive_in_time, send)
        finally:
            self.large_bytes -= own_large_bytes

    def _make_timeout_error(self) -> HTTPException:
        detail = (
            f"expected the body, or the next {PROGRESS_BYTES:,} bytes of it, within {self.timeout_s:g} s "
            "(BERGSON_CLIENT_TIMEOUT_S)"
        )
        return HTTPException(408, detail, {"Connection": "close"})
