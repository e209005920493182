"""How assistants reach the MCP server: over its standard input and output, or over HTTP."""

import asyncio
import logging
from contextlib import closing
from typing import Final

import anyio
import uvicorn
from mcp.server.transport_security import TransportSecuritySettings
from starlette.types import ASGIApp

from bergson_core.errors import Unavailable
from service.http.bodies.slow_bodies import SlowBodyMiddleware
from service.http.connections import cut_slow_connections, make_server_config
from service.http.metrics import WebMetrics
from service.http.middleware import HostCheckMiddleware, RequestIdMiddleware
from service.http.same_origin import SameOriginMiddleware
from service.http.server_socket import open_server_socket
from service.mcp.key_gate import KeyGate, KeyGateMiddleware
from service.mcp.server import make_server
from service.mcp.service_access import ServiceAccess
from service.settings import ServiceSettings, is_loopback

logger = logging.getLogger(__name__)

PATH: Final = "/mcp"
_MAX_BODY_BYTES: Final = 8 * 2**20


def serve_stdio(access: ServiceAccess, *, allow_takedown: bool = False) -> None:
    """Serves the program that has started this process, until it closes standard input."""
    anyio.run(make_server(access, allow_takedown=allow_takedown).run_stdio_async)


def make_http_app(
    access: ServiceAccess, settings: ServiceSettings, *, allow_takedown: bool = False
) -> ASGIApp:
    """Returns the application that serves MCP at `/mcp`.

    Each request stands for itself, so that any number of copies may run behind a load balancer.

    Args:
        access: How the service is called. It forwards the keys of the callers.
        settings: `host` and `allowed_hosts`: where the server listens, and under which names it answers.
        allow_takedown: Whether there is a tool that takes documents down.
    """
    app: ASGIApp = make_server(access, allow_takedown=allow_takedown).streamable_http_app(
        streamable_http_path=PATH,
        stateless_http=True,
        json_response=True,
        max_request_body_size=_MAX_BODY_BYTES,
        # HostCheckMiddleware and SameOriginMiddleware check names and origins as the service does.
        transport_security=TransportSecuritySettings(enable_dns_rebinding_protection=False),
    )
    gate = KeyGate(access, requires_keys=not is_loopback(settings.host))
    # Each wraps those above it, so that a request passes the last one first.
    app = SlowBodyMiddleware(app, timeout_s=settings.client_timeout_s, limit_bytes=_MAX_BODY_BYTES)
    app = KeyGateMiddleware(app, gate)
    app = SameOriginMiddleware(app, allowed_hosts=settings.allowed_hosts)
    app = HostCheckMiddleware(app, allowed_hosts=settings.allowed_hosts)
    return RequestIdMiddleware(app, metrics=WebMetrics())


class _Server(uvicorn.Server):
    """A server that cuts slow connections, as the web service does."""

    async def on_tick(self, counter: int) -> bool:
        if counter % 10 == 0:
            cut_slow_connections(self)
        return await super().on_tick(counter)


def serve_http(access: ServiceAccess, settings: ServiceSettings, *, allow_takedown: bool = False) -> None:
    """Serves MCP over HTTP until a signal tells the process to stop.

    Raises:
        Forbidden: Others can reach the address, and the service needs no API key.
        Unavailable: The address cannot be listened on, or the service does not answer.
    """
    if not is_loopback(settings.host):
        asyncio.run(_require_keys_of_service(access))
    config = make_server_config(make_http_app(access, settings, allow_takedown=allow_takedown), settings)
    with closing(open_server_socket(settings, advice="--port or --host")) as server_socket:
        host, port = server_socket.getsockname()[:2]
        logger.info("MCP: http://%s:%s%s", f"[{host}]" if ":" in host else host, port, PATH)
        server = _Server(config)
        server.run(sockets=[server_socket])
    if not server.started:
        raise Unavailable("the server did not start: its error is logged above")


async def _require_keys_of_service(access: ServiceAccess) -> None:
    await KeyGate(access, requires_keys=True).require_keys()
