"""Calls with API keys: what makes them, and what makes a call of every route."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fastapi import FastAPI
from fastapi.routing import iter_route_contexts

from service.auth.api_keys import Caller, KeyFile
from service.openapi import examples

BODIES: dict[str, Any] = {
    "build_index": examples.INDEX_INLINE | {"name": "facts-2"},
    "estimate_index": examples.INDEX_INLINE,
    "append_documents": examples.APPEND_INLINE,
    "fit_profile": examples.PROFILE_INLINE,
    "attribute": examples.ATTRIBUTE_REQUEST,
    "attribute_batch": examples.BATCH_REQUEST,
}


def bearer(data_dir: Path, name: str = "ada", expires_at: float | None = None, **what: Any) -> dict[str, str]:
    """The header of a new key."""
    made = Caller.model_validate({"name": name, "scope": "read"} | what)
    return {"Authorization": f"Bearer {KeyFile(data_dir).create(made, expires_at)}"}


def every_call(app: FastAPI, index: str = "facts", job_id: str = "job-1") -> Iterator[tuple[str, str, str]]:
    """(name of the route, method, path) of everything that `app` answers, with parameters filled in."""
    filled = {"name": index, "job_id": job_id, "document_id:path": "doc-1"}
    for route in iter_route_contexts(app.routes):
        path = route.path or ""
        for parameter, value in filled.items():
            path = path.replace("{" + parameter + "}", value)
        assert "{" not in path, f"no value for a parameter of {path}"
        for method in sorted(route.methods or {"GET"}):
            yield route.name or "", method, path
