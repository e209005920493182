"""What the OpenAPI document says beyond the code: descriptions, examples, and the problems that a call can answer.

responses=success_response(200, "The job.", examples.JOB) | problem_responses("job_not_found", "redis_unavailable")
"""

from itertools import chain
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
from service.links.kept_answer import LINK_ID_PATTERN
from service.openapi import examples, link_examples
from service.queue.broker import NO_WORKER

TITLE = "Bergson Service"
DESCRIPTION = """Which training documents made a language model say that?

1. **Build** an index with `POST /index`: a worker stores the gradient of every training document.
2. **Follow** the job at `GET /jobs/{job_id}` or on its event stream.
3. **Query** the index with `POST /attribute`: you send a prompt and a completion, and get the training documents that
   made the model say the completion.

Every response has the header `X-Request-ID`. Send an id of your own (letters, digits, `.` `_` `:` `-`, up to 128
characters) to find a request in the logs again. Errors are `application/problem+json` (RFC 9457), with a `code` for
programs and a `detail` for people. In addition to the errors that each call lists, any call may answer
`host_not_allowed` (400), `not_found` (404), `method_not_allowed` (405) and `internal_error` (500).
Unknown fields, NaN, Infinity and integers beyond 64 bits are refused.

If there are API keys (`bergson keys create`), each call needs one, as `Authorization: Bearer bg_…`; only the health
checks and these pages need none. Each call says which scope its key needs: `read`, `write` or `admin`. For a key that
is limited to some indexes, other indexes do not exist.
"""
TAGS = [
    {"name": "Indexes", "description": "First, turn training documents into an index."},
    {"name": "Documents", "description": "Add documents to an index, read them, take them down."},
    {"name": "Behaviours", "description": "Keep named sets of queries with an index, and query with them."},
    {"name": "Jobs", "description": "Then follow the build, or stop it."},
    {"name": "Attribution", "description": "Then query the index."},
    {"name": "Workers", "description": "See the workers and the models in their memory."},
    {"name": "Keys", "description": "See what your API key may do."},
    {"name": "Health", "description": "For supervisors, load balancers and monitoring."},
]

SECURITY_SCHEME = {
    "type": "http",
    "scheme": "bearer",
    "description": "An API key, `bg_…`. A service that only its own machine can reach needs none until there are keys.",
}

JOB_ID_PATTERN = r"^[A-Za-z0-9_-]{1,64}$"

Responses = dict[int | str, dict[str, Any]]

BUILD_FIELD_ERROR = FieldError(loc=["body", "gradients", "projection_dim"], msg="expected at least 1")
PAGE_FIELD_ERROR = FieldError(loc=["query", "limit"], msg="expected at most 200")
QUERY_FIELD_ERROR = FieldError(loc=["body", "top_k"], msg="expected at most 1000")
BATCH_FIELD_ERROR = FieldError(loc=["body", "queries", 3, "top_k"], msg="expected at most 1000")
INDEXES_FIELD_ERROR = FieldError(loc=["body", "indexes"], msg="expected each index once, got 'facts' again")
DOCUMENTS_FIELD_ERROR = FieldError(loc=["body"], msg="expected exactly one of `dataset` and `documents`")
BEHAVIOUR_FIELD_ERROR = FieldError(
    loc=["body", "queries", 3, "completion"],
    msg="a query of a behaviour needs a completion: got none",
)
PROFILE_FIELD_ERROR = FieldError(loc=["body", "mixing"], msg="expected at most 1")
UNLEARN_FIELD_ERROR = FieldError(loc=["body", "ids"], msg="expected either `ids` or `filter`, got both")
TOTALS_FIELD_ERROR = FieldError(loc=["body", "top"], msg="expected at most 100")
LINK_FIELD_ERROR = FieldError(loc=["body", "request", "top_k"], msg="expected at most 1000")
LINK_ID_ERROR = FieldError(loc=["path", "link_id"], msg=f"expected text that matches {LINK_ID_PATTERN}")
INDEX_NAME_ERROR = FieldError(loc=["path", "name"], msg=f"expected text that matches {NAME_PATTERN}")
JOB_ID_ERROR = FieldError(loc=["path", "job_id"], msg=f"expected text that matches {JOB_ID_PATTERN}")

_EXAMPLE_DETAILS = {
    "too_long": "expected at most 2048 tokens, got 3120: shorten the prompt",
    "index_not_found": "no index named 'facts': GET /index lists them",
    "document_not_found": "the index 'facts' has no document 'doc-17'",
    "behaviour_not_found": "facts has no behaviour 'refusal'; it has born-in-london, refusals",
    "behaviour_exists": "facts has a behaviour 'refusals' already; choose another name, or delete it first",
    "ids_exist": "the index has documents of these ids already: 'doc-17'; expected new ids",
    "index_exists": "an index named 'facts' exists: choose another name",
    "index_busy": "a job is changing the index 'facts': see GET /jobs",
    "disk_full": "/data/indexes/facts cannot be written, no space is left: make room and try again, finished work is "
    "kept ([Errno 28] No space left on device)",
    "read_only": "/data/indexes/facts cannot be written, the file system is read-only: mount it for writing and try "
    "again, finished work is kept ([Errno 30] Read-only file system)",
    "index_corrupt": "the files of the index 'facts' differ from its manifest: build it again",
    "job_not_found": f"no job {examples.JOB_ID!r}: GET /jobs lists them",
    "link_not_found": f"no link {link_examples.LINK_ID!r}: it has ended, was removed, or never was",
    "redis_unavailable": "Redis does not answer: start it, or correct REDIS_URL",
    "redis_full": "Redis is full: raise maxmemory, cancel jobs that wait, or remove what else it holds",
    "unavailable": "this web process is stopping: send the request to another",
    "no_worker": NO_WORKER,
    "unauthorized": "expected an API key in the header `Authorization: Bearer bg_…`",
    "forbidden": "this call needs a key of scope write; 'ada' has the scope read",
    "rate_limited": "the rate limit of this key is 100/minute: try again in 12 s",
    "queue_full": "too many requests wait already: try again after Retry-After",
    "deadline_exceeded": "no answer within 30 s: raise timeout_s, or start more workers",
    "request_timeout": "expected the body, or the next 65,536 bytes of it, within 20 s (BERGSON_CLIENT_TIMEOUT_S)",
    "body_too_large": "expected a body of at most 33,554,432 bytes (BERGSON_MAX_BODY_BYTES)",
    "unsupported_media_type": "expected a JSON body with the header Content-Type: application/json",
}
_IMPLIED_PROBLEMS = {"redis_unavailable": ["redis_full"], "body_too_large": ["request_timeout"]}
"""Whatever needs Redis may find it full as well, and a body that may be too large may come too slowly."""
_EVENTS_EXAMPLE = (
    'event: state\ndata: {"job_id": "0199c2f4e8a07d3a", "state": "running", "progress": {"stage": "load"}}\n'
    "id: 1772366401200-0\n\n"
    'event: progress\ndata: {"job_id": "0199c2f4e8a07d3a", "state": "running", "progress": {"done": 4200}}\n'
    "id: 1772366440100-0\n\n: ping\n\n"
)
EVENT_STREAM_RESPONSE: Responses = {
    200: {
        "description": "The events of the job until it has ended.",
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
    200: {"description": "The metrics.", "content": {"text/plain": {"example": _METRICS_EXAMPLE}}},
}


def success_response(status: int, description: str, example: Any) -> Responses:
    """Returns the documentation of a successful response.

    Args:
        status: Its HTTP status.
        description: What it is.
        example: Its body.
    """
    return {status: {"description": description, "content": {"application/json": {"example": example}}}}


JOB_ACCEPTED_RESPONSE = success_response(202, "The job is queued.", examples.JOB_ACCEPTED)
JOB_ACCEPTED_RESPONSE[202]["headers"] = {
    "Location": {
        "description": "Address of the job: `/jobs/{job_id}`, below the prefix of a proxy if there is one.",
        "schema": {"type": "string"},
    }
}


def _problem_example(code: str, refused: FieldError) -> dict[str, Any]:
    if code == "invalid_input":
        details = make_validation_problem([refused], examples.REQUEST_ID)
    else:
        details = make_problem(code, _EXAMPLE_DETAILS[code], examples.REQUEST_ID)
    if code == "ids_exist":
        details = details.model_copy(update={"ids": ["doc-17"]})
    return details.model_dump(exclude_none=True)


QUERY_ERRORS = (
    "index_not_found",
    "behaviour_not_found",
    "index_busy",
    "invalid_input",
    "too_long",
    "body_too_large",
    "unsupported_media_type",
    "queue_full",
    "index_corrupt",
    "no_worker",
    "redis_unavailable",
    "deadline_exceeded",
)
"""Codes that every call which asks an index may answer."""


def problem_responses(*codes: str, refused: FieldError = PAGE_FIELD_ERROR) -> Responses:
    """Returns the documentation of the errors that a call can answer, by their status and with an example of each.

    Args:
        codes: Codes of the errors.
        refused: The field of the example for `invalid_input`.
    """
    responses: Responses = {}
    for code in chain.from_iterable((code, *_IMPLIED_PROBLEMS.get(code, ())) for code in codes):
        kind = PROBLEM_KINDS[code]
        schema = {"$ref": f"#/components/schemas/{ProblemDetails.__name__}"}
        response = responses.setdefault(
            kind.status, {"description": "", "content": {MEDIA_TYPE: {"schema": schema, "examples": {}}}}
        )
        titles = filter(None, (response["description"], f"{kind.title} (`{code}`)"))
        response["description"] = "; ".join(titles)
        _problem_examples(response)[code] = {"summary": kind.title, "value": _problem_example(code, refused)}
        if kind.retry_after_s is not None:
            header = {"description": "Seconds to wait.", "schema": {"type": "integer"}}
            response["headers"] = {"Retry-After": header}
    return dict(sorted(responses.items(), key=lambda item: str(item[0])))


def _problem_examples(response: dict[str, Any]) -> dict[str, Any]:
    return response["content"][MEDIA_TYPE]["examples"]


_KEY_PROBLEM_RESPONSES = problem_responses("unauthorized", "forbidden", "rate_limited", "queue_full")
"""The errors that every call with an API key can answer."""


def _add_security(document: dict[str, Any]) -> None:
    """Adds to each call the scope that it needs, and the errors of API keys.

    OpenAPI 3.1 allows the names of roles in the place of the scopes of OAuth.
    """
    document["components"]["securitySchemes"] = {"key": SECURITY_SCHEME}
    for path_item in document["paths"].values():
        for operation in path_item.values():
            scope = ROUTE_SCOPES.get(operation["operationId"])
            if scope is None:
                continue
            operation["security"] = [{"key": [scope]}]
            for status, key_problems in _KEY_PROBLEM_RESPONSES.items():
                response = operation["responses"].setdefault(str(status), key_problems)
                if response is not key_problems:
                    titles = [*response["description"].split("; "), *key_problems["description"].split("; ")]
                    response["description"] = "; ".join(dict.fromkeys(titles))
                    _problem_examples(response).update(_problem_examples(key_problems))
            operation["responses"] = dict(sorted(operation["responses"].items()))
            operation["description"] += f"\n\nScope of the key: `{scope}`."


def openapi_document(app: FastAPI) -> dict[str, Any]:
    """Returns the OpenAPI document of `app`, with the schema of problems and the scope of each call."""
    if app.openapi_schema is None:
        document = get_openapi(
            title=TITLE, version=__version__, description=DESCRIPTION, routes=app.routes, tags=TAGS
        )
        problem_schema = ProblemDetails.model_json_schema(ref_template="#/components/schemas/{model}")
        schemas = document["components"]["schemas"]
        schemas.update(problem_schema.pop("$defs", {}))
        schemas[ProblemDetails.__name__] = problem_schema
        _add_security(document)
        app.openapi_schema = document
    return app.openapi_schema
