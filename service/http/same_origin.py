"""Refuses calls that change something or cost something if a page of another origin makes them.

A page elsewhere can have the user's browser send a request here, also without a body, and without keys nothing else
tells it from the user's own. Browsers say where a request comes from: in `Sec-Fetch-Site`, or in `Origin` where the
service is reached by plain HTTP. Programs send neither. The order of the checks is that of Go's
`net/http.CrossOriginProtection`.

Source: F. Valsorda, "Cross-Site Request Forgery", 2025.
"""

import re
from collections.abc import Collection
from typing import Final

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from service.http.bodies.strict_json import is_json_type
from service.http.problems import make_problem, problem_response
from service.settings import is_loopback

_SAFE_METHODS: Final = frozenset({"GET", "HEAD", "OPTIONS"})
_DEFAULT_PORTS: Final = {"http": "80", "https": "443"}
_ORIGIN: Final = re.compile(r"(https?)://(\[[0-9a-f:.]+\]|[^\s/:@?#\[\]]+)(?::(\d{1,5}))?", re.IGNORECASE)
_HOST: Final = re.compile(r"(\[[0-9a-f:.]+\]|[^:\[\]]+)(?::(\d*))?", re.IGNORECASE)


class SameOriginMiddleware:
    """Refuses requests with other methods than GET, HEAD and OPTIONS that a page of another origin makes.

    A body that is not declared as JSON is refused as well: a page may send other types to any origin without asking.

    Args:
        app: The application.
        allowed_hosts: Hosts that the service answers to. A page of one of them at its scheme's own port may call the
            service, which a proxy that changes `Host` needs; this machine's own names are not enough.
    """

    def __init__(self, app: ASGIApp, allowed_hosts: Collection[str]) -> None:
        self.app = app
        self._public_hosts = {host.lower() for host in allowed_hosts if not is_loopback(host)}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] in _SAFE_METHODS:
            return await self.app(scope, receive, send)
        headers, request_id = Headers(scope=scope), scope["state"]["request_id"]
        if not self._is_own(headers):
            detail = (
                f"{scope['method']} is refused to pages of another origin; a page of the service itself, and programs, "
                "which send no Origin, may call it"
            )
            problem = make_problem("forbidden", detail, request_id)
        elif _has_body(headers) and not is_json_type(headers.get("content-type", "")):
            detail = "expected a JSON body with the header Content-Type: application/json"
            problem = make_problem("unsupported_media_type", detail, request_id)
        else:
            return await self.app(scope, receive, send)
        await problem_response(problem)(scope, receive, send)

    def _is_own(self, headers: Headers) -> bool:
        """Returns whether a request comes from a page of the service or from no page."""
        if sites := headers.getlist("sec-fetch-site"):
            return all(site in ("same-origin", "none") for site in sites)
        return all(
            self._is_own_origin(origin, headers.get("host", "")) for origin in headers.getlist("origin")
        )

    def _is_own_origin(self, origin: str, host: str) -> bool:
        match = _ORIGIN.fullmatch(origin)
        if match is None:  # `null`, or a page that does not come by HTTP
            return False
        scheme, name, port = match[1].lower(), match[2].lower(), match[3]
        if port in (None, _DEFAULT_PORTS[scheme]) and name in self._public_hosts:
            return True
        host_match = _HOST.fullmatch(host.lower())
        default = _DEFAULT_PORTS[scheme]
        return host_match is not None and (name, port or default) == (host_match[1], host_match[2] or default)


def _has_body(headers: Headers) -> bool:
    return "transfer-encoding" in headers or headers.get("content-length", "0").strip("0") != ""
