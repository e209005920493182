"""The socket that the web service listens on."""

import errno
import socket
from typing import Final

from bergson_core.errors import Unavailable
from service.settings import ServiceSettings

MAX_PENDING_CONNECTIONS: Final = 2048
"""Connections that the system accepts before the service looks at them."""


def open_server_socket(
    settings: ServiceSettings, advice: str = "BERGSON_PORT or BERGSON_HOST"
) -> socket.socket:
    """Returns a socket that listens on the host and port of the settings.

    Args:
        settings: The settings.
        advice: How to choose another address, for the error.

    Raises:
        Unavailable: The address cannot be listened on, for example because another program does.
    """
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    address = (settings.host.strip("[]"), settings.port)
    try:
        server_socket = socket.create_server(address, family=family, backlog=MAX_PENDING_CONNECTIONS)
        # Nagle's algorithm delays an answer by 40 ms. asyncio turns it off only for sockets that are declared as TCP.
        return socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP, fileno=server_socket.detach())
    except OSError as error:
        is_taken = error.errno == errno.EADDRINUSE
        reason = "another program listens there" if is_taken else error.strerror or str(error)
        raise Unavailable(
            f"cannot listen on {settings.host} port {settings.port}: {reason}; choose another with {advice}"
        ) from error
