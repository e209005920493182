"""What every request passes: its id, the checks of its host and of its API key, the limit of its body.

These are plain ASGI classes and not `BaseHTTPMiddleware`, so that streams are neither buffered nor cut. A request
passes `RequestIdMiddleware` first, then `ProxyPrefixMiddleware` (`service.http.proxy_prefix`), `HeadMiddleware`,
`HostCheckMiddleware`, `SameOriginMiddleware` (`service.http.same_origin`), `KeyCheckMiddleware`,
`BodyLimitMiddleware` and `SlowBodyMiddleware` (`service.http.bodies.slow_bodies`).
"""

import logging
import re
import time
import uuid
from collections.abc import Collection
from urllib.parse import quote

import anyio
from fastapi import HTTPException
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from bergson_core.errors import BergsonError
from service.auth import authorization
from service.auth.rate_limits import RateLimiter
from service.http.metrics import WebMetrics, route_template
from service.http.problems import error_response, make_problem, problem_response
from service.http.proxy_prefix import route_path
from worker.telemetry import logs, tracing

logger = logging.getLogger(__name__)

_PROBE_PATHS = ("/livez", "/readyz")
REQUEST_ID_PATTERN = re.compile(r"[A-Za-z0-9._:-]{1,128}")
_MAX_LENGTH_DIGITS = 18
"""Most digits of a `Content-Length` that are read as a number; one that has more is too large in any case."""


class RequestIdMiddleware:
    """Gives each request an id, logs it, counts it and traces it.

    The id is the caller's own if that is well-formed. It is put on the response and into every line of the log. This is
    the outermost middleware, so that requests that the others refuse are counted too.
    """

    def __init__(self, app: ASGIApp, metrics: WebMetrics) -> None:
        self.app = app
        self.metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        headers = Headers(scope=scope)
        callers_id = headers.get("x-request-id", "")
        request_id = callers_id if REQUEST_ID_PATTERN.fullmatch(callers_id) else uuid.uuid4().hex
        scope.setdefault("state", {})["request_id"] = request_id
        logs.set_context(request_id=request_id)

        started, status = time.perf_counter(), 500

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                response_headers = MutableHeaders(scope=message)
                response_headers["X-Request-ID"] = request_id
                response_headers["X-Content-Type-Options"] = "nosniff"
            await send(message)

        parents, attributes = [headers.get("traceparent")], {"bergson.request_id": request_id}
        with tracing.span(scope["method"], "server", parents, attributes) as span:
            try:
                await self.app(scope, receive, send_with_id)
            finally:
                elapsed_s = time.perf_counter() - started
                self.metrics.count_request(scope, status, elapsed_s)
                self._update_span(scope, status, span)
                self._log(scope, status, 1000 * elapsed_s)

    @staticmethod
    def _update_span(scope: Scope, status: int, span: tracing.Spans) -> None:
        method, route = scope["method"], route_template(scope)
        attributes = {"http.request.method": method, "http.route": route, "http.response.status_code": status}
        span.update(attributes, name=f"{method} {route}", failed=status >= 500)

    @staticmethod
    def _log(scope: Scope, status: int, elapsed_ms: float) -> None:
        method, path, caller = scope["method"], quote(scope["path"]), scope["state"].get("caller")
        fields = {"method": method, "path": path, "status": status, "duration_ms": round(elapsed_ms, 1)}
        suffix = ""
        if caller and caller.id:
            suffix, fields["key"] = f", key {caller.name}", caller.name
        logger.info("%s %s %s %.1f ms%s", method, path, status, elapsed_ms, suffix, extra=fields)


class HeadMiddleware:
    """Answers HEAD as GET is answered, with the same headers and without a body.

    The server has to see HEAD, or else it would wait for the body whose length the headers announce. So the application
    gets a copy of the scope.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] != "HEAD":
            return await self.app(scope, receive, send)
        get_scope = {**scope, "method": "GET"}
        with anyio.CancelScope() as response_scope:

            async def send_headers(message: Message) -> None:
                if message["type"] == "http.response.start":
                    await send(message)
                    await send({"type": "http.response.body", "body": b""})
                    if "content-length" not in Headers(raw=message["headers"]):
                        response_scope.cancel()  # an event stream would go on until its job has ended

            await self.app(get_scope, receive, send_headers)
        scope.update({name: get_scope[name] for name in ("route", "endpoint") if name in get_scope})


class HostCheckMiddleware:
    """Refuses requests whose `Host` header names a foreign host.

    Otherwise a page elsewhere could reach the service in the user's browser, by letting its own name point here. Health
    checks are answered under every name, since a supervisor asks by an address that it has given out itself.
    """

    def __init__(self, app: ASGIApp, allowed_hosts: Collection[str]) -> None:
        self.app = app
        self.allowed_hosts = frozenset(host.lower() for host in allowed_hosts)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or "*" in self.allowed_hosts:
            return await self.app(scope, receive, send)
        hosts = Headers(scope=scope).getlist("host")  # more than one is invalid (RFC 9112, section 3.2)
        host = re.sub(r":\d*$", "", hosts[0]).lower() if len(hosts) == 1 else ""
        is_probe = scope["method"] == "GET" and route_path(scope) in _PROBE_PATHS
        if is_probe or host in self.allowed_hosts:
            return await self.app(scope, receive, send)
        names = ", ".join(sorted(self.allowed_hosts))
        detail = f"expected the Host header to be one of {names}; BERGSON_ALLOWED_HOSTS sets them"
        response = problem_response(make_problem("host_not_allowed", detail, scope["state"]["request_id"]))
        await response(scope, receive, send)


class KeyCheckMiddleware:
    """Refuses callers without a valid API key, and those who exceed its limits, before a byte of the body is read.

    A request that passes has its `Caller` in `state.caller`, or None if its path is open to everybody.
    """

    def __init__(self, app: ASGIApp, authenticator: authorization.KeyAuthenticator) -> None:
        self.app = app
        self.authenticator = authenticator

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        scope["state"]["caller"] = None
        if authorization.is_open_path(scope["method"], route_path(scope)):
            return await self.app(scope, receive, send)
        rate_limiter: RateLimiter = scope["app"].state.rate_limiter
        try:
            header = Headers(scope=scope).get("authorization", "")
            caller = scope["state"]["caller"] = self.authenticator.identify(header)
            await rate_limiter.start_call(caller)
        except BergsonError as error:
            return await error_response(error, scope["state"]["request_id"])(scope, receive, send)
        try:
            await self.app(scope, receive, send)
        finally:
            rate_limiter.end_call(caller)


class BodyLimitMiddleware:
    """Refuses bodies of more than `limit_bytes`: at once if the request declares its length, else while it streams.

    FastAPI's own `max_body_size` is not used because it answers with plain text.
    """

    def __init__(self, app: ASGIApp, limit_bytes: int) -> None:
        self.app = app
        self.limit_bytes = limit_bytes
        self.detail = f"expected a body of at most {limit_bytes:,} bytes (BERGSON_MAX_BODY_BYTES)"

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
