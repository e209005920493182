"""The service below a prefix of a proxy's address: `https://example.org/bergson/index` is answered by `/index`.

A proxy strips the prefix from the path, so the service has to be told it: by the setting `root_path`, or by the header
`X-Forwarded-Prefix` of a proxy that the setting `trusted_proxies` names. Addresses that the service writes are paths
with the prefix, or relative; none names a host, so `X-Forwarded-Host` and `X-Forwarded-Proto` change nothing.
"""

import ipaddress
from collections.abc import Collection
from urllib.parse import quote

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.http.problems import make_problem, problem_response
from service.settings import parse_root_path


def route_path(scope: Scope) -> str:
    """Returns the path of a request without the prefix, which is what routes are compared with."""
    path, prefix = scope["path"], scope.get("root_path", "")
    return path[len(prefix) :] if prefix and f"{path}/".startswith(f"{prefix}/") else path


class ProxyPrefixMiddleware:
    """Puts the prefix into `root_path` and before the path, as ASGI demands, and takes the host out of redirects.

    A prefix that the proxy has left in the path is not added twice.

    Args:
        app: The application.
        root_path: The prefix, or an empty text.
        trusted_proxies: Addresses and networks of proxies whose `X-Forwarded-Prefix` counts; `*` stands for all.
    """

    def __init__(self, app: ASGIApp, root_path: str, trusted_proxies: Collection[str]) -> None:
        self.app = app
        self._root_path = root_path
        self._trusts_all = "*" in trusted_proxies
        self._networks = [ipaddress.ip_network(proxy) for proxy in trusted_proxies if proxy != "*"]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        try:
            prefix = self._find_prefix(scope)
        except ValueError as error:
            problem = make_problem(
                "bad_request", f"X-Forwarded-Prefix: {error}", scope["state"]["request_id"]
            )
            return await problem_response(problem)(scope, receive, send)
        if prefix:
            scope["root_path"] = prefix
            if route_path(scope) == scope["path"]:
                scope["path"] = prefix + scope["path"]

        async def send_with_own_redirect(message: Message) -> None:
            if message["type"] == "http.response.start" and message["status"] == 307:
                headers = MutableHeaders(scope=message)
                if "://" in headers.get("location", ""):
                    headers["location"] = _redirect_without_host(scope)
            await send(message)

        await self.app(scope, receive, send_with_own_redirect)

    def _find_prefix(self, scope: Scope) -> str:
        """Returns the prefix of this request. Raises `ValueError` if the proxy names one that is no path."""
        forwarded = Headers(scope=scope).getlist("x-forwarded-prefix")
        if not forwarded or not self._trusts(scope):
            return self._root_path
        # Several proxies in a row each add theirs, the outermost first.
        return "".join(parse_root_path(part.strip()) for value in forwarded for part in value.split(","))

    def _trusts(self, scope: Scope) -> bool:
        if self._trusts_all or not self._networks:
            return self._trusts_all
        try:
            address = ipaddress.ip_address((scope.get("client") or ("", 0))[0])
        except ValueError:
            return False
        return any(address in network for network in self._networks)


def _redirect_without_host(scope: Scope) -> str:
    """Returns the path of a request without its last slashes, or with one where it has none.

    It is relative where the service knows of no prefix, since it may lie below one all the same.
    """
    stripped = scope["path"].rstrip("/")
    slashes = len(scope["path"]) - len(stripped)
    if scope.get("root_path"):
        target = quote(stripped if slashes else f"{stripped}/")
    else:
        name = quote(stripped.rpartition("/")[2])
        target = f"{'../' * slashes}{name}" if slashes else f"./{name}/"
    query = scope["query_string"].decode("latin-1")
    return f"{target}?{query}" if query else target
