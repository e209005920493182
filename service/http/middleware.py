"""What every request passes, as plain ASGI: its id, the checks of its host and of its key, the limit of its body.

Plain ASGI and not `BaseHTTPMiddleware`, so that streams are neither buffered nor cut. From the outside in:
`RequestId`, `HostCheck`, `KeyCheck`, `BodyLimit`.
"""

import logging
import re
import time
import uuid
from collections.abc import Collection
from urllib.parse import quote

from fastapi import HTTPException
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from bergson_core.errors import BergsonError
from service.auth import authorization
from service.auth.rate_limits import RateLimiter
from service.http.metrics import WebMetrics, route_template
from service.http.problems import error_response, make_problem, problem_response
from worker.telemetry import logs, tracing

logger = logging.getLogger(__name__)

REQUEST_ID_PATTERN = re.compile(r"[A-Za-z0-9._:-]{1,128}")
_MAX_LENGTH_DIGITS = 18


class RequestIdMiddleware:
    """Give each request an id, the caller's own if it is sane; put it on the response and in the log.

    It is outermost, so that what is counted into `metrics` is every request, also one that is refused.
    """

    def __init__(self, app: ASGIApp, metrics: WebMetrics) -> None:
        self.app = app
        self.metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        sent = Headers(scope=scope).get("x-request-id", "")
        request_id = sent if REQUEST_ID_PATTERN.fullmatch(sent) else uuid.uuid4().hex
        scope.setdefault("state", {})["request_id"] = request_id
        logs.set_context(request_id=request_id)

        started, status = time.perf_counter(), 500

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = MutableHeaders(scope=message)
                headers["X-Request-ID"] = request_id
                headers["X-Content-Type-Options"] = "nosniff"
            await send(message)

        parent, about = Headers(scope=scope).get("traceparent"), {"bergson.request_id": request_id}
        with tracing.span(scope["method"], "server", [parent], about) as span:
            try:
                await self.app(scope, receive, send_with_id)
            finally:
                elapsed_s = time.perf_counter() - started
                self.metrics.count_request(scope, status, elapsed_s)
                self._trace(scope, status, span)
                self._log(scope, status, 1000 * elapsed_s)

    @staticmethod
    def _trace(scope: Scope, status: int, span: tracing.Spans) -> None:
        method, route = scope["method"], route_template(scope)
        attributes = {"http.request.method": method, "http.route": route, "http.response.status_code": status}
        span.update(attributes, name=f"{method} {route}", failed=status >= 500)

    @staticmethod
    def _log(scope: Scope, status: int, elapsed_ms: float) -> None:
        method, path, caller = scope["method"], quote(scope["path"]), scope["state"].get("caller")
        key = caller.name if caller and caller.id else None
        fields = {"method": method, "path": path, "status": status, "duration_ms": round(elapsed_ms, 1)}
        who = f", key {key}" if key else ""
        extra = fields | ({"key": key} if key else {})
        logger.info("%s %s %s %.1f ms%s", method, path, status, elapsed_ms, who, extra=extra)


class HostCheckMiddleware:
    """Refuse a `Host` that is not ours: a page elsewhere must not reach us by pointing its own name here."""

    def __init__(self, app: ASGIApp, allowed: Collection[str]) -> None:
        self.app = app
        self.allowed = frozenset(host.lower() for host in allowed)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or "*" in self.allowed:
            return await self.app(scope, receive, send)
        host = re.sub(r":\d*$", "", Headers(scope=scope).get("host", "")).lower()
        if host in self.allowed:
            return await self.app(scope, receive, send)
        names = ", ".join(sorted(self.allowed))
        detail = f"expected the Host header to be one of {names}; the setting allowed_hosts adds others"
        response = problem_response(make_problem("host_not_allowed", detail, scope["state"]["request_id"]))
        await response(scope, receive, send)


class KeyCheckMiddleware:
    """Refuse who has no key, or asks too much with it, before a byte of the body is read.

    What comes through has `state.caller`, which is None for what is open to all.
    """

    def __init__(self, app: ASGIApp, keys: authorization.KeyAuthenticator) -> None:
        self.app = app
        self.keys = keys

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        scope["state"]["caller"] = None
        if authorization.is_open_path(scope["method"], scope["path"]):
            return await self.app(scope, receive, send)
        limits: RateLimiter = scope["app"].state.limits
        try:
            caller = scope["state"]["caller"] = self.keys.identify(
                Headers(scope=scope).get("authorization", "")
            )
            await limits.start_call(caller)
        except BergsonError as error:
            return await error_response(error, scope["state"]["request_id"])(scope, receive, send)
        try:
            await self.app(scope, receive, send)
        finally:
            limits.end_call(caller)


class BodyLimitMiddleware:
    """Refuse a body of more than `limit_bytes`: at once if it declares its length, else while it streams.

    FastAPI's own `max_body_size` is not used because its answer is plain text.
    """

    def __init__(self, app: ASGIApp, limit_bytes: int) -> None:
        self.app = app
        self.limit_bytes = limit_bytes
        self.detail = f"expected a body of at most {limit_bytes:,} bytes (the setting max_body_bytes)"

    def _declares_too_much(self, scope: Scope) -> bool:
        length = Headers(scope=scope).get("content-length", "")
        return length.isdecimal() and (len(length) > _MAX_LENGTH_DIGITS or int(length) > self.limit_bytes)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        if self._declares_too_much(scope):
            details = make_problem("body_too_large", self.detail, scope["state"]["request_id"])
            return await problem_response(details, {"Connection": "close"})(scope, receive, send)
        received_bytes = 0

        async def receive_counted() -> Message:
            nonlocal received_bytes
            message = await receive()
            received_bytes += len(message.get("body", b""))
            if received_bytes > self.limit_bytes:
                raise HTTPException(413, self.detail, {"Connection": "close"})
            return message

        await self.app(scope, receive_counted, send)
