"""What the OpenAPI document says beside the code: order, examples, and the problem schema of every error.

responses=answered(200, "The job.", examples.JOB) | problems("job_not_found", "redis_unavailable")
"""

from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

from bergson_core.schemas.build import NAME_PATTERN
from bergson_core.version import __version__
from service.auth.authorization import ROUTE_SCOPES
from service.http.problems import (
    MEDIA_TYPE,
    PROBLEM_KINDS,
    FieldError,
    ProblemDetails,
    make_problem,
    make_validation_problem,
)
from service.openapi import examples

TITLE = "Bergson Service"
DESCRIPTION = """Which training samples made a language model say that?

1. **Build** an index with `POST /index`: a worker keeps the gradient of every training sample.
2. **Follow** the job at `GET /jobs/{id}` or its event stream.
3. **Ask** with `POST /attribute`: a prompt and a completion go in, the training samples behind them come out.

Every response carries `X-Request-ID`; send your own (letters, digits, `.` `_` `:` `-`, up to 128) to find a
call again in the logs. Errors are `application/problem+json` (RFC 9457): branch on `code`, show `detail`.
Beside those listed at each call there are `host_not_allowed` (400), `not_found` (404), `method_not_allowed` (405)
and `internal_error` (500).
Unknown fields are refused; so are NaN, Infinity and integers over 64 bits.

Where there are API keys (`bergson keys create`), each call needs one, as `Authorization: Bearer bg_…`; only health and
these pages are open. What a key's scope must be stands at each call: `read`, `write` or `admin`. Indexes that a key is
not for are, for it, not there.
"""
TAGS = [
    {"name": "Indexes", "description": "First: turn training samples into an index."},
    {"name": "Documents", "description": "What the index holds: add to it, take down from it."},
    {"name": "Jobs", "description": "Then: watch the build, or stop it."},
    {"name": "Attribution", "description": "Then: ask the index."},
    {"name": "Workers", "description": "Who does the work."},
    {"name": "Health", "description": "For supervisors and load balancers."},
]

SECURITY_SCHEME = {
    "type": "http",
    "scheme": "bearer",
    "description": "An API key, `bg_…`. None is needed on a machine's own address as long as there are no keys.",
}

JOB_ID_PATTERN = r"^[A-Za-z0-9_-]{1,64}$"

Responses = dict[int | str, dict[str, Any]]

BUILD_FIELD_ERROR = FieldError(
    loc=["body", "gradients", "projection_dim"], msg="Input should be greater than or equal to 1"
)
PAGE_FIELD_ERROR = FieldError(loc=["query", "limit"], msg="Input should be less than or equal to 200")
QUERY_FIELD_ERROR = FieldError(loc=["body", "top_k"], msg="Input should be less than or equal to 1000")
BATCH_FIELD_ERROR = FieldError(loc=["body", "queries", 3, "top_k"], msg="Input should be less than or equal to 1000")
DOCUMENTS_FIELD_ERROR = FieldError(loc=["body"], msg="expected exactly one of `dataset` and `documents`")
PROFILE_FIELD_ERROR = FieldError(loc=["body", "mixing"], msg="Input should be less than or equal to 1")
INDEX_NAME_ERROR = FieldError(loc=["path", "name"], msg=f"String should match pattern '{NAME_PATTERN}'")
JOB_ID_ERROR = FieldError(loc=["path", "job_id"], msg=f"String should match pattern '{JOB_ID_PATTERN}'")

_DETAILS = {
    "too_long": "expected at most 2048 tokens, got 3120: shorten the prompt",
    "index_not_found": "no index named 'facts': GET /index lists them",
    "document_not_found": "the index 'facts' has no document 'doc-17'",
    "ids_exist": "the index has documents of these ids already: 'doc-17'; expected new ids",
    "index_exists": "an index named 'facts' exists: choose another name",
    "index_busy": "a job is at work on the index 'facts': follow it at GET /jobs",
    "index_corrupt": "the files of the index 'facts' differ from its manifest: build it again",
    "job_not_found": f"no job {examples.JOB_ID!r}: GET /jobs lists them",
    "redis_unavailable": "Redis does not answer: start it, or correct REDIS_URL",
    "unavailable": "this web process is stopping: ask another",
    "no_worker": "no worker is alive: start one with `python -m worker`",
    "unauthorized": "expected an API key in the header `Authorization: Bearer bg_…`",
    "forbidden": "this needs a key of scope write; 'ada' has the scope read",
    "rate_limited": "this key may ask 100/minute: try again in 12 s",
    "queue_full": "too many queries wait already: ask again after Retry-After",
    "deadline_exceeded": "no answer within 30 s: raise timeout_s, or start more workers",
    "body_too_large": "expected a body of at most 33,554,432 bytes (the setting max_body_bytes)",
    "unsupported_media_type": "expected a JSON body with the header Content-Type: application/json",
}
_EVENTS_EXAMPLE = (
    'event: state\ndata: {"job_id": "0199c2f4e8a07d3a", "state": "running", "progress": {"stage": "load"}}\n'
    "id: 1772366401200-0\n\n"
    'event: progress\ndata: {"job_id": "0199c2f4e8a07d3a", "state": "running", "progress": {"done": 4200}}\n'
    "id: 1772366440100-0\n\n: ping\n\n"
)
EVENT_STREAM_RESPONSE: Responses = {
    200: {
        "description": "Events until the job has ended.",
        "content": {"text/event-stream": {"example": _EVENTS_EXAMPLE}},
    }
}
_METRICS_EXAMPLE = (
    "# HELP bergson_queue_queries Queries that wait or are worked on.\n# TYPE bergson_queue_queries gauge\n"
    "bergson_queue_queries 2.0\n"
    "# HELP bergson_queries_total Queries that were replied to: ok, or a problem.\n"
    "# TYPE bergson_queries_total counter\n"
    'bergson_queries_total{outcome="ok",worker="gpu-1-42-a1b2c3"} 1024.0\n'
)
METRICS_RESPONSE: Responses = {
    200: {"description": "The numbers.", "content": {"text/plain": {"example": _METRICS_EXAMPLE}}},
}


def success_response(status: int, description: str, example: Any) -> Responses:
    """The good answer, with its example."""
    return {status: {"description": description, "content": {"application/json": {"example": example}}}}


JOB_ACCEPTED_RESPONSE = success_response(202, "The job is queued.", examples.JOB_ACCEPTED)
JOB_ACCEPTED_RESPONSE[202]["headers"] = {
    "Location": {"description": "The job: `/jobs/{job_id}`.", "schema": {"type": "string"}}
}


def _example(code: str, refused: FieldError) -> dict[str, Any]:
    if code == "invalid_input":
        details = make_validation_problem([refused], examples.REQUEST_ID)
    else:
        details = make_problem(code, _DETAILS[code], examples.REQUEST_ID)
    if code == "ids_exist":
        details = details.model_copy(update={"ids": ["doc-17"]})
    return details.model_dump(exclude_none=True)


def problem_responses(*codes: str, refused: FieldError = PAGE_FIELD_ERROR) -> Responses:
    """The errors that a call can end with, by status, each with its example; `refused` is that of 422."""
    found: Responses = {}
    for code in codes:
        kind = PROBLEM_KINDS[code]
        schema = {"$ref": f"#/components/schemas/{ProblemDetails.__name__}"}
        entry = found.setdefault(
            kind.status, {"description": "", "content": {MEDIA_TYPE: {"schema": schema, "examples": {}}}}
        )
        entry["description"] = "; ".join(filter(None, (entry["description"], f"{kind.title} (`{code}`)")))
        entry["content"][MEDIA_TYPE]["examples"][code] = {
            "summary": kind.title,
            "value": _example(code, refused),
        }
        if kind.retry_after_s is not None:
            seconds = {"description": "Seconds to wait.", "schema": {"type": "integer"}}
            entry["headers"] = {"Retry-After": seconds}
    return dict(sorted(found.items(), key=lambda item: str(item[0])))


_REFUSED = problem_responses("unauthorized", "forbidden", "rate_limited")
"""What every call that needs a key may end with."""


def _examples(response: dict[str, Any]) -> dict[str, Any]:
    return response["content"][MEDIA_TYPE]["examples"]


def _secure(made: dict[str, Any]) -> None:
    """Say of each call which scope it needs; OpenAPI 3.1 has the names of roles in the place of OAuth's scopes."""
    made["components"]["securitySchemes"] = {"key": SECURITY_SCHEME}
    for item in made["paths"].values():
        for operation in item.values():
            if needed := ROUTE_SCOPES.get(operation["operationId"]):
                operation["security"] = [{"key": [needed]}]
                for status, entry in _REFUSED.items():
                    known = operation["responses"].setdefault(str(status), entry)
                    if known is not entry:
                        known["description"] += f"; {entry['description']}"
                        _examples(known).update(_examples(entry))
                operation["responses"] = dict(sorted(operation["responses"].items()))
                operation["description"] += f"\n\nScope of the key: `{needed}`."


def openapi_document(app: FastAPI) -> dict[str, Any]:
    """The OpenAPI document of `app`, with the schema of problems and who may call what."""
    if app.openapi_schema is None:
        made = get_openapi(
            title=TITLE, version=__version__, description=DESCRIPTION, routes=app.routes, tags=TAGS
        )
        schema = ProblemDetails.model_json_schema(ref_template="#/components/schemas/{model}")
        schemas = made["components"]["schemas"]
        schemas.update(schema.pop("$defs", {}))
        schemas[ProblemDetails.__name__] = schema
        _secure(made)
        app.openapi_schema = made
    return app.openapi_schema
