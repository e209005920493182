"""Errors as problems in the sense of RFC 9457: one table of codes, and one shape for every error of the API.

`PROBLEM_KINDS` has an entry for every class of `bergson_core.errors` (a test compares them) and for what HTTP itself
can refuse. Whatever goes wrong, the body of the response is a `ProblemDetails` with the id of the request.
"""

import http
import logging
from collections.abc import Mapping
from typing import Any, NamedTuple

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.routing import Match, Mount

from bergson_core.errors import BergsonError, IdsExist, RateLimited, Unauthorized
from bergson_core.schemas.base import plain_errors
from bergson_core.utils.disk_errors import find_disk_error
from service.schemas import FieldError, ProblemDetails

logger = logging.getLogger(__name__)

MEDIA_TYPE = "application/problem+json"
MAX_FIELD_ERRORS = 100
MAX_LOCATION_CHARACTERS = 200
MAX_MESSAGE_CHARACTERS = 1000


class ProblemKind(NamedTuple):
    """The HTTP status and the title of an error code."""

    status: int
    title: str
    retry_after_s: int | None = None
    """Seconds for the header `Retry-After`, if it helps to wait."""


PROBLEM_KINDS: dict[str, ProblemKind] = {
    "invalid_input": ProblemKind(422, "Invalid input"),
    "model_not_found": ProblemKind(422, "Model not found"),
    "dataset_not_found": ProblemKind(422, "Dataset not found"),
    "column_not_found": ProblemKind(422, "Column not found"),
    "too_long": ProblemKind(422, "Too long for the model"),
    "index_not_found": ProblemKind(404, "Index not found"),
    "document_not_found": ProblemKind(404, "Document not found"),
    "behaviour_not_found": ProblemKind(404, "Behaviour not found"),
    "behaviour_exists": ProblemKind(409, "Behaviour exists"),
    "ids_exist": ProblemKind(409, "Ids exist"),
    "index_exists": ProblemKind(409, "Index exists"),
    "index_busy": ProblemKind(409, "Index is being built"),
    "index_corrupt": ProblemKind(500, "Index is damaged"),
    "disk_full": ProblemKind(507, "Disk is full"),
    "read_only": ProblemKind(507, "Files may not be written"),
    "disk_failed": ProblemKind(507, "Disk reports an error"),
    "job_not_found": ProblemKind(404, "Job not found"),
    "link_not_found": ProblemKind(404, "Link not found"),
    "unauthorized": ProblemKind(401, "No valid API key"),
    "forbidden": ProblemKind(403, "Not allowed"),
    "unavailable": ProblemKind(503, "Unavailable", 5),
    "redis_unavailable": ProblemKind(503, "Redis cannot be used", 5),
    "redis_full": ProblemKind(503, "Redis is full", 5),
    "no_worker": ProblemKind(503, "No live worker", 5),
    "cluster_unavailable": ProblemKind(503, "No Ray cluster does the work", 5),
    "queue_full": ProblemKind(429, "Queue is full", 1),
    "rate_limited": ProblemKind(429, "Too many requests", 1),
    "deadline_exceeded": ProblemKind(504, "No answer in time"),
    "cancelled": ProblemKind(409, "Cancelled"),
    "lease_lost": ProblemKind(503, "Taken over by another worker", 5),
    "internal": ProblemKind(500, "Failed unexpectedly"),
    "error": ProblemKind(500, "Failed"),
    "bad_request": ProblemKind(400, "Bad request"),
    "host_not_allowed": ProblemKind(400, "Host not allowed"),
    "not_found": ProblemKind(404, "Not found"),
    "method_not_allowed": ProblemKind(405, "Method not allowed"),
    "request_timeout": ProblemKind(408, "Body sent too slowly"),
    "body_too_large": ProblemKind(413, "Body too large"),
    "head_too_large": ProblemKind(431, "Address and headers too large"),
    "unsupported_media_type": ProblemKind(415, "Not JSON"),
    "internal_error": ProblemKind(500, "Internal error"),
}

_CODES_BY_STATUS = {
    400: "bad_request",
    404: "not_found",
    405: "method_not_allowed",
    408: "request_timeout",
    413: "body_too_large",
    415: "unsupported_media_type",
    429: "queue_full",
}


def find_problem_kind(code: str) -> ProblemKind:
    """Returns the entry of `PROBLEM_KINDS` for `code`; an unknown code, of a newer worker, counts as `error`."""
    return PROBLEM_KINDS.get(code, PROBLEM_KINDS["error"])


def make_problem(
    code: str, detail: str, request_id: str, errors: list[FieldError] | None = None
) -> ProblemDetails:
    """Returns the body of an error.

    Args:
        code: Code of the error, which decides on title and status.
        detail: What went wrong, and what to do.
        request_id: Id of the request.
        errors: The fields that were refused.
    """
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


def make_validation_problem(
    errors: list[FieldError], request_id: str, is_cut: bool = False
) -> ProblemDetails:
    """Returns the body of an error that lists refused fields, and names the first one in its detail.

    Args:
        errors: The refused fields.
        request_id: Id of the request.
        is_cut: Whether there are more that are not listed.
    """
    first, others = errors[0], f" (and {len(errors) - 1} more in `errors`)" if len(errors) > 1 else ""
    location = ".".join(str(part) for part in first.loc[1:]) or str(first.loc[0])
    if is_cut:
        others = f" (and {len(errors) - 1} more in `errors`, which are not all)"
    return make_problem("invalid_input", f"{location}: {first.msg}{others}", request_id, errors)


def problem_response(details: ProblemDetails, headers: Mapping[str, str] | None = None) -> Response:
    """Returns the response with a problem as its body, and with `Retry-After` if it helps to wait.

    Args:
        details: The problem.
        headers: Further headers, which override `Retry-After`.
    """
    retry_after_s = find_problem_kind(details.code).retry_after_s
    retry_header = {} if retry_after_s is None else {"Retry-After": str(retry_after_s)}
    return Response(
        details.model_dump_json(exclude_none=True),
        status_code=details.status,
        media_type=MEDIA_TYPE,
        headers={**retry_header, **(headers or {}), "X-Request-ID": details.request_id},
    )


def error_response(error: BergsonError, request_id: str) -> Response:
    """Returns the response for an error, with the headers that belong to it, and logs errors of the server."""
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
    """Returns the id that `RequestIdMiddleware` gave to the request."""
    return request.state.request_id


def _handle_bergson_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, BergsonError)
    return error_response(error, get_request_id(request))


def _make_field_error(error: Mapping[str, Any]) -> FieldError:
    message, location = error["msg"], error["loc"]
    if error["type"] == "json_invalid":
        message, location = f"expected JSON: {error['ctx']['error']}", location[:1]  # without its position
    location = [part[:MAX_LOCATION_CHARACTERS] if isinstance(part, str) else part for part in location]
    return FieldError(loc=location, msg=message[:MAX_MESSAGE_CHARACTERS])


def _handle_validation_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    details = plain_errors(error.errors())
    errors = list(map(_make_field_error, details[:MAX_FIELD_ERRORS]))
    is_cut = len(details) > len(errors)
    return problem_response(make_validation_problem(errors, get_request_id(request), is_cut))


def _allowed_methods(request: Request) -> list[str]:
    """Returns the methods that the routes of a path take, which may be several routes. Directories are left out."""
    routes = [route for route in request.app.routes if not isinstance(route, Mount)]

    def is_allowed(method: str) -> bool:
        scope = {**request.scope, "method": method}
        return any(route.matches(scope)[0] == Match.FULL for route in routes)

    methods = list(filter(is_allowed, ("GET", "POST", "PUT", "PATCH", "DELETE")))
    return ["GET", "HEAD", *methods[1:]] if methods[:1] == ["GET"] else methods


def _handle_http_exception(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    code, detail, headers = _CODES_BY_STATUS.get(error.status_code, "error"), str(error.detail), error.headers
    if error.status_code == 405 and (methods := _allowed_methods(request)):
        headers = {"Allow": ", ".join(methods)}
        detail = (
            f"{request.method} {request.url.path}: expected {' or '.join(methods)}. GET /docs lists all calls"
        )
    if detail == http.HTTPStatus(error.status_code).phrase:
        detail = f"{detail}: {request.method} {request.url.path}. GET /docs lists all calls"
    details = make_problem(code, detail, get_request_id(request))
    return problem_response(details.model_copy(update={"status": error.status_code}), headers)


def _handle_unexpected_error(request: Request, error: Exception) -> Response:
    request_id = get_request_id(request)
    if isinstance(error, OSError) and (named := find_disk_error(error)) is not None:
        return error_response(named, request_id)
    logger.error("%s %r failed: %r", request.method, request.url.path, error)
    detail = "something went wrong in the server; its log has the request id"
    return problem_response(make_problem("internal_error", detail, request_id))


def install_error_handlers(app: FastAPI) -> None:
    """Makes `app` answer every error as a problem.

    Starlette raises an unexpected error again after the response has been sent, so that its traceback is logged.
    """
    app.add_exception_handler(BergsonError, _handle_bergson_error)
    app.add_exception_handler(RequestValidationError, _handle_validation_error)
    app.add_exception_handler(HTTPException, _handle_http_exception)
    app.add_exception_handler(Exception, _handle_unexpected_error)
