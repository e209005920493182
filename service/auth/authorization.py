"""Who may call what. Two gates, and both are shut by default:

`Keys.caller` comes before everything else (`middleware.KeyCheck`): what is not in `OPEN` needs a key, also what does
not exist. `authorize` is a dependency of every route: a route that `SCOPES` does not name is refused to everybody.
"""

from fastapi import Request

from bergson_core.errors import Forbidden, IndexNotFound, InvalidInput, Unauthorized, Unavailable
from service.auth.api_keys import Caller, KeyFile, Scope
from service.settings import ServiceSettings, is_loopback

OPEN_PATHS = frozenset({"/", "/docs", "/openapi.json", "/livez", "/readyz"})
"""Health, and pages that hold no data; with them what is below /static/."""

ROUTE_SCOPES: dict[str, Scope] = {
    "attribute": "read",
    "attribute_batch": "read",
    "list_indexes": "read",
    "get_index": "read",
    "get_document": "read",
    "list_jobs": "read",
    "get_job": "read",
    "follow_job": "read",
    "list_workers": "read",
    "list_models": "read",
    "metrics": "read",
    "build_index": "write",
    "estimate_index": "write",  # it runs a model
    "append_documents": "write",
    "take_document_down": "write",
    "fit_profile": "write",
    "compact": "write",
    "cancel_job": "write",
    "remove_index": "admin",
}
"""Name of a route → the scope that it needs."""

ANONYMOUS = Caller(name="anybody")


def is_open_path(method: str, path: str) -> bool:
    """Whether this may be asked without a key."""
    return method in ("GET", "HEAD") and (path in OPEN_PATHS or path.startswith("/static/"))


class KeyAuthenticator:
    """Decides who asks. Without a file of keys everybody is `ANYBODY`, on a loopback address and nowhere else."""

    def __init__(self, settings: ServiceSettings):
        self._file = KeyFile(settings.data_dir)
        self._needed = not is_loopback(settings.host)

    def identify(self, authorization: str) -> Caller:
        """Who sent this header. Raises `Unauthorized`, and `Unavailable` where the file of keys cannot be read."""
        if not self.requires_key():
            return ANONYMOUS
        scheme, _, presented = authorization.partition(" ")
        if scheme.lower() != "bearer":
            raise Unauthorized("expected an API key in the header `Authorization: Bearer bg_…`")
        if (key := self._file.find(presented.strip())) is None:
            raise Unauthorized("this API key is unknown, or it has expired or was revoked: ask for a new one")
        return key

    def requires_key(self) -> bool:
        """Whether a key is asked for. A file that was there and is gone while we run opens nothing."""
        self._needed = self._needed or self._file.read() is not None
        return self._needed

    def require_active(self, caller: Caller) -> None:
        """Raises `Unauthorized` where `caller` was let in and would not be any more."""
        keys = self._file.read() or ()
        if not (any(key == caller and key.is_active() for key in keys) if self.requires_key() else caller is ANONYMOUS):
            raise Unauthorized("the API key that this was asked with does not count any more")


def require_keys_if_public(settings: ServiceSettings) -> None:
    """Raises `InvalidInput` where others would reach a service without keys, or the keys cannot be read."""
    file = KeyFile(settings.data_dir)
    try:
        keys = file.read() or ()
    except Unavailable:
        raise InvalidInput(f"{file.path} cannot be read; see above") from None
    if not is_loopback(settings.host) and not any(key.is_active() for key in keys):
        raise InvalidInput(
            f"host {settings.host!r} can be reached from other machines, and there is no API key for them: make one "
            f"with `bergson keys create NAME --scope admin --data_dir {settings.data_dir}`, or listen on 127.0.0.1"
        )


async def refuse_unknown_parameters(request: Request) -> None:
    """Raises `InvalidInput` for a query parameter that is not documented: a typo is no wish for the default."""
    if not request.query_params:
        return
    paths, path = request.app.openapi()["paths"], getattr(request.scope["route"], "path_format", "")
    if path not in paths:
        return
    parameters = paths[path].get(request.method.lower(), {}).get("parameters", ())
    known = [one["name"] for one in parameters if one["in"] == "query"]
    if unknown := sorted(set(request.query_params) - set(known)):
        expected = " or ".join(known) or "none"
        raise InvalidInput(f"query parameter {unknown[0][:100]!r}: expected {expected}")


async def authorize(request: Request) -> None:
    """Raises `Forbidden` for too small a scope, and `IndexNotFound` for an index that is not there for the caller.

    It sees the index of a path. Where the body names one, or a job belongs to one, the view asks `Caller.sees`.
    """
    caller: Caller | None = request.state.caller
    if caller is None:  # what is open
        return
    needed = ROUTE_SCOPES.get(request.scope["route"].name)
    if needed is None:
        raise Forbidden("no key may do this: nobody has said which scope it needs")
    if not caller.has_scope(needed):
        raise Forbidden(f"this needs a key of scope {needed}; {caller.name!r} has the scope {caller.scope}")
    name = request.path_params.get("name")
    if name is not None and not caller.can_see(name):
        raise IndexNotFound.named(name)
