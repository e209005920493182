"""What a client makes of answers: errors as they were raised in the service, events, and when to ask again. No IO."""

import random
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from math import ceil
from typing import Any, NamedTuple

import httpx

from bergson_core.errors import BergsonError, DeadlineExceeded, IdsExist, Unavailable, from_code

_SHOWN = 200
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.5, 8.0
_BUSY = (429, 503)


def error_from_problem(problem: Any) -> BergsonError:
    """The error that a problem of the API stands for, with its status and the id of the request."""
    error = from_code(problem["code"], problem["detail"])
    error.code, error.status, error.request_id = problem["code"], problem["status"], problem["request_id"]
    if isinstance(error, IdsExist):
        error.ids = tuple(problem.get("ids") or ())
    return error


def error_from_response(response: httpx.Response) -> BergsonError:
    """The error that a whole answer is; what is not of the service, of a proxy say, is shown as it came."""
    try:
        error = error_from_problem(response.json())
    except (ValueError, KeyError, TypeError):
        kind = Unavailable if response.status_code in _BUSY else BergsonError
        error = kind(
            f"expected an answer of the service, got status {response.status_code} from {response.url}: "
            f"{response.text[:_SHOWN]!r}"
        )
        error.status = response.status_code
    if isinstance(error, Unavailable):
        error.wait_s = retry_after_s(response)
    return error


def connection_error(failure: httpx.TransportError) -> BergsonError:
    """The error of a request that got no answer: out of time, or no connection, or one that broke."""
    where = failure.request.url
    if isinstance(failure, httpx.ReadTimeout):
        error = DeadlineExceeded(f"{where} has not answered in time: ask again, or with a longer timeout_s")
    else:
        error = Unavailable(
            f"{where} does not answer ({failure}): start the service (`bergson up`), or correct BERGSON_URL"
        )
    error.__cause__ = failure
    return error


def was_sent(failure: httpx.TransportError) -> bool:
    """Whether the service may have read the request."""
    return not isinstance(failure, httpx.ConnectError | httpx.ConnectTimeout | httpx.PoolTimeout)


def retry_after_s(response: httpx.Response) -> int:
    """Seconds that the service, or a proxy, wants to be left alone; 0 where it does not say."""
    value = response.headers.get("Retry-After", "")
    if value.isdecimal():
        return int(value)
    try:
        return max(0, ceil((parsedate_to_datetime(value) - datetime.now(UTC)).total_seconds()))
    except (ValueError, TypeError):  # neither a number nor a date with a time zone
        return 0


class RetryBudget:
    """Pauses between tries: exponential, drawn at random so that clients do not come back all at once."""

    def __init__(self, limit_s: float):
        self._limit_s = limit_s
        self.renew()

    def renew(self) -> None:
        """To be called where there was an answer."""
        self._end: float | None = None
        self._longest_s = _FIRST_PAUSE_S

    def pause_s(self, at_least_s: float = 0.0) -> float | None:
        """How long to wait before the next try; None where that would end later than `limit_s` after the first."""
        now = time.monotonic()
        self._end = self._end or now + self._limit_s
        pause_s = at_least_s + random.uniform(0, self._longest_s)
        self._longest_s = min(2 * self._longest_s, _LONGEST_PAUSE_S)
        return None if now + pause_s > self._end else pause_s


class Event(NamedTuple):
    """A server-sent event; `id` is the last one that the stream has named."""

    id: str
    name: str
    data: str


class EventReader:
    """Events from the pieces of a stream, as they come.

    Lines are split at line feeds alone: a text in the data may hold what Python's `splitlines` takes for others.
    """

    def __init__(self) -> None:
        self._rest = b""
        self._id, self._name, self._data = "", "", list[str]()

    def feed(self, piece: bytes) -> Iterator[Event]:
        """The events that end in `piece`."""
        *lines, self._rest = (self._rest + piece).split(b"\n")
        for line in lines:
            text = line.decode(errors="replace").removesuffix("\r")
            if not text:
                if self._data:
                    yield Event(self._id, self._name, "\n".join(self._data))
                self._name, self._data = "", []
            name, _, value = text.partition(":")
            value = value.removeprefix(" ")
            if name == "data":
                self._data.append(value)
            elif name == "event":
                self._name = value
            elif name == "id":
                self._id = value
