"""Lets nobody to the MCP server over HTTP whom the service itself would not let in.

The server has no keys of its own. It asks the service whether the key of a caller is valid, and calls it with that key
for every tool, so that scopes, rates and indexes are decided where they always are. It never uses a key of its own
process for a caller.
"""

import time
from collections import OrderedDict
from hashlib import sha256
from typing import Final

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from bergson_core.errors import (
    BergsonError,
    Forbidden,
    IndexNotFound,
    QueueFull,
    RateLimited,
    Unauthorized,
)
from service.client import AsyncClient
from service.http.problems import error_response
from service.mcp.service_access import ServiceAccess, read_bearer_key

_VALID_S: Final = 60.0
"""Seconds for which a key is not looked up again. A revoked key is refused by the service all the same."""
_MAX_REMEMBERED: Final = 1000
_NO_KEY_IS_REFUSED: Final = "no key is refused"
"""Stands among the keys that are remembered; no key has spaces."""
_PROBED_INDEX: Final = "0"
"""An index that is asked for to find out whether a key is valid. It makes no difference whether it exists."""


class KeyGate:
    """Asks the service whether a key is valid.

    Args:
        access: How the service is called.
        requires_keys: Whether a service that needs no keys is refused, because others can reach this server.
    """

    def __init__(self, access: ServiceAccess, *, requires_keys: bool):
        self._access, self._requires_keys = access, requires_keys
        self._valid_until: OrderedDict[bytes, float] = OrderedDict()

    async def check(self, authorization: str | None) -> None:
        """Returns if the service lets in a caller with this header `Authorization`.

        Raises:
            Unauthorized: The service needs a key, and the header has none that is valid.
            Forbidden: The service needs no key, and others can reach this server.
            BergsonError: The service does not answer.
        """
        key = read_bearer_key(authorization)
        if authorization and not key:
            raise Unauthorized("expected an API key in the header `Authorization: Bearer bg_…`")
        if self._requires_keys:
            await self.require_keys()
        if not self._is_remembered(key):
            await self._call(authorization)
            self._remember(key)

    async def require_keys(self) -> None:
        """Returns if the service needs keys.

        Raises:
            Forbidden: It lets in callers without a key.
            BergsonError: The service does not answer.
        """
        if self._is_remembered(_NO_KEY_IS_REFUSED):
            return
        try:
            await self._call(None)
        except Unauthorized:
            self._remember(_NO_KEY_IS_REFUSED)
            return
        raise Forbidden(
            "the service needs no API key, and this server can be reached from other machines: create a key with "
            "`bergson keys create`, or listen on 127.0.0.1"
        )

    async def _call(self, authorization: str | None) -> None:
        """Makes a call that costs the service next to nothing. Raises `Unauthorized`, or that there is no answer."""
        client: AsyncClient = self._access.client(authorization)
        try:
            async with client:
                await client.index(_PROBED_INDEX)
        except (IndexNotFound, Forbidden, RateLimited, QueueFull):
            return

    def _is_remembered(self, key: str) -> bool:
        return self._valid_until.get(_digest(key), 0.0) > time.monotonic()

    def _remember(self, key: str) -> None:
        self._valid_until[_digest(key)] = time.monotonic() + _VALID_S
        self._valid_until.move_to_end(_digest(key))
        while len(self._valid_until) > _MAX_REMEMBERED:
            self._valid_until.popitem(last=False)


def _digest(key: str) -> bytes:
    return sha256(key.encode(errors="surrogatepass")).digest()


class KeyGateMiddleware:
    """Answers 401 and its like to requests that the gate does not let in, before their bodies are read."""

    def __init__(self, app: ASGIApp, gate: KeyGate) -> None:
        self.app, self.gate = app, gate

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        try:
            await self.gate.check(Headers(scope=scope).get("authorization"))
        except BergsonError as error:
            return await error_response(error, scope["state"]["request_id"])(scope, receive, send)
        await self.app(scope, receive, send)
