"""Decides who may call what. Every request passes two checks, and both refuse by default:

1. `KeyAuthenticator.identify` runs before everything else (`service.http.middleware.KeyCheckMiddleware`). Every path
   outside `OPEN_PATHS` needs a key, also one that does not exist.
2. `authorize` is a dependency of every route. A route that `ROUTE_SCOPES` does not name is refused to everybody.
"""

from fastapi import Request

from bergson_core.errors import Forbidden, IndexNotFound, InvalidInput, Unauthorized, Unavailable
from service.auth.api_keys import Caller, KeyFile, Scope
from service.settings import ServiceSettings, is_loopback

OPEN_PATHS = frozenset({"/", "/docs", "/openapi.json", "/livez", "/readyz"})
"""Health, and pages that hold no data. Everything below /static/ is open as well."""

ROUTE_SCOPES: dict[str, Scope] = {
    "attribute": "read",
    "attribute_batch": "read",
    "attribute_indexes": "read",
    "influence_totals": "read",
    "list_indexes": "read",
    "get_index": "read",
    "get_document": "read",
    "make_link": "read",
    "get_link": "read",
    "remove_link": "read",  # of the key's own links; those of others need `write`
    "list_behaviours": "read",
    "get_behaviour": "read",
    "list_jobs": "read",
    "get_job": "read",
    "follow_job": "read",
    "list_workers": "read",
    "list_models": "read",
    "get_key": "read",
    "metrics": "read",
    "build_index": "write",
    "estimate_index": "write",  # it runs a model
    "append_documents": "write",
    "take_document_down": "write",
    "fit_profile": "write",
    "create_behaviour": "write",
    "delete_behaviour": "write",
    "compact": "write",
    "preview_unlearning": "write",  # it runs a model for as long as a job
    "cancel_job": "write",
    "remove_index": "admin",
}
"""Maps the name of a route to the scope that it needs."""

ANONYMOUS = Caller(name="anybody")
"""The caller of a request that needs no key, who may do everything."""


def is_open_path(method: str, path: str) -> bool:
    """Returns whether a request needs no key."""
    return method in ("GET", "HEAD") and (path in OPEN_PATHS or path.startswith("/static/"))


class KeyAuthenticator:
    """Finds out who makes a request.

    As long as there is no file of keys and the service listens on a loopback address, everybody is `ANONYMOUS`.
    """

    def __init__(self, settings: ServiceSettings):
        self._key_file = KeyFile(settings.data_dir)
        self._requires_key = not is_loopback(settings.host)

    def identify(self, authorization: str) -> Caller:
        """Returns the caller who sent a header `Authorization`.

        Raises:
            Unauthorized: The header holds no key, or one that is unknown or has expired.
            Unavailable: The file of keys cannot be read.
        """
        if not self.requires_key():
            return ANONYMOUS
        scheme, _, presented_key = authorization.partition(" ")
        if scheme.lower() != "bearer":
            raise Unauthorized("expected an API key in the header `Authorization: Bearer bg_…`")
        if (key := self._key_file.find(presented_key.strip())) is None:
            raise Unauthorized("this API key is unknown, or it has expired or was revoked: ask for a new one")
        return key

    def requires_key(self) -> bool:
        """Returns whether requests need a key.

        Once they do, they always will: a file of keys that disappears while the process runs opens nothing.

        Raises:
            Unavailable: The file of keys cannot be read.
        """
        self._requires_key = self._requires_key or self._key_file.read() is not None
        return self._requires_key

    def require_active(self, caller: Caller) -> None:
        """Checks again, during a long response, that a caller who was let in still has access.

        Raises:
            Unauthorized: The caller's key has expired, was changed or revoked, or a key is needed by now.
            Unavailable: The file of keys cannot be read.
        """
        if self.requires_key():
            is_active = any(key == caller and key.is_active() for key in self._key_file.read() or ())
        else:
            is_active = caller is ANONYMOUS
        if not is_active:
            raise Unauthorized("the API key of this request has expired or was revoked")


def require_keys_if_public(settings: ServiceSettings) -> None:
    """Checks, before the service starts, that other machines can reach it only with a key.

    Raises:
        InvalidInput: The service would listen on an address that other machines reach, and there is no active key; or
            the file of keys cannot be read.
    """
    key_file = KeyFile(settings.data_dir)
    try:
        keys = key_file.read() or ()
    except Unavailable:
        raise InvalidInput(f"{key_file.path} cannot be read; see above") from None
    if not is_loopback(settings.host) and not any(key.is_active() for key in keys):
        raise InvalidInput(
            f"host {settings.host!r} can be reached from other machines, and there is no API key: create one "
            f"with `bergson keys create NAME --scope admin --data_dir {settings.data_dir}`, or listen on 127.0.0.1"
        )


async def refuse_unknown_parameters(request: Request) -> None:
    """Refuses query parameters that are not documented: a misspelled name must not silently mean the default.

    Raises:
        InvalidInput: The request has such a parameter.
    """
    if not request.query_params:
        return
    paths, path = request.app.openapi()["paths"], getattr(request.scope["route"], "path_format", "")
    if path not in paths:
        return
    parameters = paths[path].get(request.method.lower(), {}).get("parameters", ())
    known = [parameter["name"] for parameter in parameters if parameter["in"] == "query"]
    if unknown := sorted(set(request.query_params) - set(known)):
        expected = " or ".join(known) or "none"
        raise InvalidInput(f"query parameter {unknown[0][:100]!r}: expected {expected}")


async def authorize(request: Request) -> None:
    """Checks the scope of the caller, and the index that the path names.

    An index that the caller may not see is treated as one that does not exist. Where the body names the index, or a
    job belongs to one, the view itself calls `Caller.can_see`.

    Raises:
        Forbidden: The route needs a larger scope.
        IndexNotFound: The caller may not see the index.
    """
    caller: Caller | None = request.state.caller
    if caller is None:  # the path is open
        return
    scope = ROUTE_SCOPES.get(request.scope["route"].name)
    if scope is None:
        raise Forbidden("no key may do this: the service states no scope for this route")
    if not caller.has_scope(scope):
        raise Forbidden(
            f"this call needs a key of scope {scope}; {caller.name!r} has the scope {caller.scope}"
        )
    name = request.path_params.get("name")
    if name is not None and not caller.can_see(name):
        raise IndexNotFound.for_name(name)
