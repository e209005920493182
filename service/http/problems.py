"""Errors as RFC 9457 problems: one table from code to status, one shape for every error of the API.

`KINDS` has an entry for every class of `bergson_core.errors` (a test compares them) and for what HTTP itself
can refuse. Whatever goes wrong, the body is a `ProblemDetails` and carries the id of the request.
"""

import http
import logging
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import Response

from bergson_core.errors import BergsonError, IdsExist, RateLimited, Unauthorized
from service.schemas import FieldError, ProblemDetails

logger = logging.getLogger(__name__)

MEDIA_TYPE = "application/problem+json"
MAX_FIELD_ERRORS = 100
MAX_LOC_LENGTH = 200
_VALUE_ERROR = "Value error, "


class ProblemKind(NamedTuple):
    """What HTTP says about an error code."""

    status: int
    title: str
    retry_after_s: int | None = None


PROBLEM_KINDS: dict[str, ProblemKind] = {
    "invalid_input": ProblemKind(422, "Invalid input"),
    "model_not_found": ProblemKind(422, "Model not found"),
    "dataset_not_found": ProblemKind(422, "Dataset not found"),
    "column_not_found": ProblemKind(422, "Column not found"),
    "too_long": ProblemKind(422, "Too long for the model"),
    "index_not_found": ProblemKind(404, "Index not found"),
    "document_not_found": ProblemKind(404, "Document not found"),
    "ids_exist": ProblemKind(409, "Ids exist"),
    "index_exists": ProblemKind(409, "Index exists"),
    "index_busy": ProblemKind(409, "Index is being built"),
    "index_corrupt": ProblemKind(500, "Index is damaged"),
    "disk_full": ProblemKind(507, "Disk is full"),
    "job_not_found": ProblemKind(404, "Job not found"),
    "unauthorized": ProblemKind(401, "No valid API key"),
    "forbidden": ProblemKind(403, "Not allowed"),
    "unavailable": ProblemKind(503, "Unavailable", 5),
    "redis_unavailable": ProblemKind(503, "Redis does not answer", 5),
    "no_worker": ProblemKind(503, "No live worker", 5),
    "cluster_unavailable": ProblemKind(503, "No Ray cluster does the work", 5),
    "queue_full": ProblemKind(429, "Queue is full", 1),
    "rate_limited": ProblemKind(429, "Too many requests", 1),
    "deadline_exceeded": ProblemKind(504, "No answer in time"),
    "cancelled": ProblemKind(409, "Cancelled"),
    "lease_lost": ProblemKind(503, "Taken over by another worker", 5),
    "error": ProblemKind(500, "Failed"),
    "bad_request": ProblemKind(400, "Bad request"),
    "host_not_allowed": ProblemKind(400, "Host not allowed"),
    "not_found": ProblemKind(404, "Not found"),
    "method_not_allowed": ProblemKind(405, "Method not allowed"),
    "body_too_large": ProblemKind(413, "Body too large"),
    "unsupported_media_type": ProblemKind(415, "Not JSON"),
    "internal_error": ProblemKind(500, "Internal error"),
}

_CODES_BY_STATUS = {
    400: "bad_request",
    404: "not_found",
    405: "method_not_allowed",
    413: "body_too_large",
    415: "unsupported_media_type",
}


def find_problem_kind(code: str) -> ProblemKind:
    """The table's entry for `code`; a code from a newer worker counts as a plain failure."""
    return PROBLEM_KINDS.get(code, PROBLEM_KINDS["error"])


def make_problem(
    code: str, detail: str, request_id: str, errors: list[FieldError] | None = None
) -> ProblemDetails:
    """The problem that says `code` and `detail`."""
    kind = find_problem_kind(code)
    return ProblemDetails(
        type=f"urn:bergson:problem:{code}",
        title=kind.title,
        status=kind.status,
        detail=detail,
        code=code,
        request_id=request_id,
        errors=errors,
    )


def make_validation_problem(errors: list[FieldError], request_id: str) -> ProblemDetails:
    """The problem that lists `errors` and says the first in its detail."""
    first = errors[0]
    where = ".".join(str(part) for part in first.loc[1:]) or str(first.loc[0])
    others = f" (and {len(errors) - 1} more in `errors`)" if len(errors) > 1 else ""
    return make_problem("invalid_input", f"{where}: {first.msg}{others}", request_id, errors)


def problem_response(details: ProblemDetails, headers: Mapping[str, str] | None = None) -> Response:
    """`details` as a response, with `Retry-After` where waiting helps."""
    retry_after_s = find_problem_kind(details.code).retry_after_s
    retry = {} if retry_after_s is None else {"Retry-After": str(retry_after_s)}
    return Response(
        details.model_dump_json(exclude_none=True),
        status_code=details.status,
        media_type=MEDIA_TYPE,
        headers={**retry, **(headers or {}), "X-Request-ID": details.request_id},
    )


def error_response(error: BergsonError, request_id: str) -> Response:
    """The problem that `error` is, with the headers that belong to it."""
    details, headers = make_problem(error.code, str(error), request_id), {}
    if isinstance(error, IdsExist):
        details = details.model_copy(update={"ids": list(error.ids)})
    if isinstance(error, Unauthorized):
        headers["WWW-Authenticate"] = "Bearer"
    if isinstance(error, RateLimited):
        headers["Retry-After"] = str(error.wait_s)
    if details.status >= 500:
        logger.warning("%s: %s", error.code, error, extra={"code": error.code})
    return problem_response(details, headers)


def get_request_id(request: Request) -> str:
    """The id that `middleware.RequestId` gave to the request."""
    return request.state.request_id


def _handle_bergson_error(request: Request, error: Exception) -> Response:
    known = error if isinstance(error, BergsonError) else BergsonError(str(error))
    return error_response(known, get_request_id(request))


def _make_field_error(error: Mapping[str, Any]) -> FieldError:
    message = error["msg"].removeprefix(_VALUE_ERROR)
    if error["type"] == "json_invalid":
        message = f"expected JSON: {error['ctx']['error']}"
    return FieldError(
        loc=[part[:MAX_LOC_LENGTH] if isinstance(part, str) else part for part in error["loc"]], msg=message
    )


def _handle_validation_error(request: Request, error: Exception) -> Response:
    raw: Iterable[Mapping[str, Any]] = error.errors() if isinstance(error, RequestValidationError) else ()
    errors = [_make_field_error(one) for one in list(raw)[:MAX_FIELD_ERRORS]]
    return problem_response(make_validation_problem(errors, get_request_id(request)))


def _handle_http_exception(request: Request, error: Exception) -> Response:
    status = error.status_code if isinstance(error, HTTPException) else 500
    code = _CODES_BY_STATUS.get(status, "error")
    detail = str(getattr(error, "detail", ""))
    if detail == http.HTTPStatus(status).phrase:
        detail = f"{detail}: {request.method} {request.url.path}. GET /docs lists what there is"
    details = make_problem(code, detail, get_request_id(request)).model_copy(update={"status": status})
    return problem_response(details, getattr(error, "headers", None))


def _handle_unexpected_error(request: Request, error: Exception) -> Response:
    request_id = get_request_id(request)
    logger.error("%s %r failed: %r", request.method, request.url.path, error)
    detail = "something went wrong in the server; its log has the request id"
    return problem_response(make_problem("internal_error", detail, request_id))


def install_error_handlers(app: FastAPI) -> None:
    """Make every error of `app` a problem. An unexpected one is raised on after the reply, for the log."""
    app.add_exception_handler(BergsonError, _handle_bergson_error)
    app.add_exception_handler(RequestValidationError, _handle_validation_error)
    app.add_exception_handler(HTTPException, _handle_http_exception)
    app.add_exception_handler(Exception, _handle_unexpected_error)
