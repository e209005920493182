"""Turns responses and broken connections into the errors of `bergson_core.errors`."""

from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from math import ceil
from typing import Any

import httpx

from bergson_core.errors import BergsonError, DeadlineExceeded, IdsExist, Unavailable, from_code
from service.client.proxies import ProxyInUse

_MAX_QUOTED_CHARACTERS = 200
_TRY_LATER_STATUSES = (429, 503)


def error_from_problem(problem: Any) -> BergsonError:
    """Returns the error that the service described.

    Args:
        problem: The JSON of a `ProblemDetails`.

    Returns:
        An error of the class that belongs to the problem's code, with `code`, `status` and `request_id` set.

    Raises:
        KeyError, TypeError: `problem` is not the JSON of a problem.
    """
    error = from_code(problem["code"], problem["detail"])
    error.code, error.status, error.request_id = problem["code"], problem["status"], problem["request_id"]
    if isinstance(error, IdsExist):
        error.ids = tuple(problem.get("ids") or ())
    return error


def error_from_response(response: httpx.Response, proxy: ProxyInUse | None = None) -> BergsonError:
    """Returns the error that an unsuccessful response stands for.

    A response that does not come from the service, but from a proxy for instance, is quoted in the error's text.

    Args:
        response: A response whose body has been read.
        proxy: The proxy that the response came through.
    """
    try:
        error = error_from_problem(response.json())
    except (ValueError, KeyError, TypeError):
        error_class = Unavailable if response.status_code in _TRY_LATER_STATUSES else BergsonError
        error = error_class(
            f"expected an answer of the service, got status {response.status_code} from {response.url}"
            f"{_describe_way(proxy)}: {response.text[:_MAX_QUOTED_CHARACTERS]!r}"
            + (f"; if it is the proxy's, {proxy.advice}" if proxy else "")
        )
        error.status = response.status_code
    if isinstance(error, Unavailable):
        error.wait_s = retry_after_s(response)
    return error


def error_from_failure(failure: httpx.TransportError, proxy: ProxyInUse | None = None) -> BergsonError:
    """Returns the error of a request that got no response.

    Args:
        failure: The failure of httpx, which becomes the cause of the error.
        proxy: The proxy that the request was sent through.

    Returns:
        `DeadlineExceeded` when the response did not come in time, `Unavailable` when there was no connection or
        it broke.
    """
    url = failure.request.url
    if isinstance(failure, httpx.ReadTimeout):
        way = _describe_way(proxy)
        error = DeadlineExceeded(
            f"{url} has not answered in time{way}: ask again, or with a longer timeout_s"
        )
    elif proxy is not None:
        error = Unavailable(
            f"{url} cannot be reached{_describe_way(proxy)} ({failure}): {proxy.advice}; or start the service"
        )
    else:
        error = Unavailable(
            f"{url} does not answer ({failure}): start the service (`bergson up`), or correct BERGSON_URL"
        )
    error.__cause__ = failure
    return error


def _describe_way(proxy: ProxyInUse | None) -> str:
    return f" through the proxy {proxy.address} of {proxy.source}" if proxy else ""


def may_have_arrived(failure: httpx.TransportError) -> bool:
    """Returns whether the service may have read the request before the connection failed."""
    return not isinstance(
        failure, httpx.ConnectError | httpx.ConnectTimeout | httpx.PoolTimeout | httpx.ProxyError
    )


def retry_after_s(response: httpx.Response) -> int:
    """Returns the seconds that the header `Retry-After` asks the client to wait.

    The header may hold a number of seconds or a date. The result is 0 when the header is missing, when it cannot be
    read, and when its date has passed or has no time zone.
    """
    value = response.headers.get("Retry-After", "")
    if value.isdecimal():
        return int(value)
    try:
        return max(0, ceil((parsedate_to_datetime(value) - datetime.now(UTC)).total_seconds()))
    except (ValueError, TypeError):  # neither a number nor a date with a time zone
        return 0
