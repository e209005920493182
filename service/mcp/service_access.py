"""How a tool calls the service: with whose API key, and what becomes of an error."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Final

from mcp.server.mcpserver import Context
from mcp.server.mcpserver.exceptions import ToolError

from bergson_core.errors import BergsonError
from service.client import AsyncClient

_RETRY_S: Final = 10.0
"""Seconds for which a call is repeated that the service refuses for now: an assistant can ask again itself."""


@dataclass(frozen=True)
class ServiceAccess:
    """Calls one service.

    Args:
        url: Address of the service; None takes `BERGSON_URL`, or else port 8000 of this machine.
        forwards_keys: Whether each call has the key that the caller has sent in the header `Authorization`, and none
            if there is none. Otherwise the key is that of this process, `BERGSON_API_KEY`.
    """

    url: str | None = None
    forwards_keys: bool = False

    def client(self, authorization: str | None) -> AsyncClient:
        """Returns a client for one call.

        Args:
            authorization: The header `Authorization` of the caller, which counts if keys are forwarded.
        """
        key = read_bearer_key(authorization) if self.forwards_keys else None
        return AsyncClient(self.url, key, retry_s=_RETRY_S)

    def require_valid_url(self) -> None:
        """Raises `InvalidInput` if the address of the service cannot be read."""
        self.client(None)

    @asynccontextmanager
    async def open(self, context: Context) -> AsyncIterator[AsyncClient]:
        """Yields a client for a call of a tool. An error of the service becomes an error of the tool.

        Raises:
            ToolError: The code of the error and what the service says about it.
        """
        headers = context.headers or {}
        try:
            async with self.client(headers.get("authorization")) as client:
                yield client
        except BergsonError as error:
            quoted_id = f" (request {error.request_id})" if error.request_id else ""
            raise ToolError(f"{error.code}: {error}{quoted_id}") from error


def read_bearer_key(authorization: str | None) -> str:
    """Returns the key in a header `Authorization: Bearer …`; an empty text, which stands for no key, without one."""
    scheme, _, key = (authorization or "").partition(" ")
    return key.strip() if scheme.lower() == "bearer" else ""
