"""What is wrong with Redis, in words: it does not answer, or it refuses commands, for example because it is full."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final

from redis import RedisError
from redis.exceptions import AuthenticationError, ConnectionError, InvalidResponse, TimeoutError

from bergson_core.errors import RedisFull, RedisUnavailable


@dataclass(frozen=True)
class RedisTrouble:
    """A kind of trouble with Redis.

    Attributes:
        summary: What is wrong.
        advice: What to do.
        error_class: The error to raise.
    """

    summary: str
    advice: str
    error_class: type[RedisUnavailable] = RedisUnavailable


_SILENT: Final = RedisTrouble("Redis does not answer", "start it, or correct REDIS_URL")
_REFUSED: Final = RedisTrouble("Redis refuses a command", "its log may say why")
_BY_MESSAGE: Final = {
    "used memory > 'maxmemory'": RedisTrouble(
        "Redis is full",
        "it holds as much as its `maxmemory` allows, and takes nothing new until it has room: raise maxmemory, cancel "
        "jobs that wait, or remove what else it holds",
        RedisFull,
    ),
    "MISCONF": RedisTrouble(
        "Redis cannot save its data", "it accepts no writes until it can: see its log, and free its disk"
    ),
    "read only replica": RedisTrouble(
        "Redis is a replica that accepts no writes",
        "let REDIS_URL name the master, or Sentinel (docs/service.md)",
    ),
    "NOREPLICAS": RedisTrouble("Redis has too few replicas to accept writes", "start them"),
    "loading the dataset": RedisTrouble("Redis is loading its data", "it answers when that is done"),
    "MASTERDOWN": RedisTrouble("Redis is a replica without its master", "start the master"),
    "has no permissions": RedisTrouble(
        "Redis does not allow the user of REDIS_URL a command", "grant the rights that docs/service.md lists"
    ),
    "max number of clients": RedisTrouble("Redis has no connection left", "raise its `maxclients`"),
    "is busy running a script": RedisTrouble(
        "Redis is busy with a script", "it answers when that is done, or after the command SCRIPT KILL"
    ),
    "DB index is out of range": RedisTrouble(
        "Redis has no database of the number in REDIS_URL", "correct the number at the end of REDIS_URL"
    ),
    "Authentication required": RedisTrouble(
        "Redis wants a password", "put user and password into REDIS_URL: redis://user:password@host:port/0"
    ),
}
"""Kinds of trouble by a part of what Redis says, which a script or a pipeline may have put into a longer message."""
_WRONG_PASSWORD: Final = RedisTrouble(
    "Redis does not accept the user or the password of REDIS_URL", "correct REDIS_URL"
)
_GARBLED: Final = RedisTrouble(
    "Redis sends what cannot be read",
    "does REDIS_URL name a Redis, with nothing between that changes its replies?",
)


class UnexpectedReply(InvalidResponse):
    """The reply to a command has not the shape of such a reply. It may be the late reply to another command."""


@contextmanager
def check_replies() -> Iterator[None]:
    """Raises an error of redis-py in place of one of types or values; also a decorator, as `@check_replies()`.

    In a context that holds nothing but calls to Redis and the reading of their replies, such an error means that a
    reply had not the shape that redis-py or the caller expected (`UnexpectedReply`). A `RuntimeError` is what uvloop
    raises where a connection has been closed meanwhile.
    """
    try:
        yield
    except RuntimeError as error:
        raise ConnectionError(f"the connection was closed ({error})") from error
    except (TypeError, ValueError, LookupError, AttributeError) as error:
        raise UnexpectedReply(f"a reply of another shape: {error!r}") from error


def require_list(reply: Any, length: int | None = None) -> list[Any]:
    """Returns a reply of Redis after checking that it is a list.

    Args:
        reply: The reply.
        length: Number of values that the list has to have.

    Raises:
        UnexpectedReply: The reply is something else, or has another length.
    """
    if not isinstance(reply, list) or length not in (None, len(reply)):
        raise UnexpectedReply(f"expected a list, got {type(reply).__name__}")
    return reply


def find_trouble(error: RedisError) -> RedisTrouble:
    """Returns what kind of trouble an error of redis-py stands for."""
    message = str(error)
    for part, trouble in _BY_MESSAGE.items():
        if part in message:
            return trouble
    if isinstance(error, AuthenticationError):
        return _WRONG_PASSWORD
    if isinstance(error, InvalidResponse):
        return _GARBLED
    return _SILENT if isinstance(error, ConnectionError | TimeoutError) else _REFUSED


def unavailable_error(error: RedisError) -> RedisUnavailable:
    """Returns the error for callers that stands for an error of redis-py: what is wrong and what to do."""
    trouble = find_trouble(error)
    reason = "" if trouble in _BY_MESSAGE.values() else f" ({error})"
    return trouble.error_class(f"{trouble.summary}: {trouble.advice}{reason}")


def describe_reason(error: RedisError) -> str:
    """Returns what a log line says beside the summary: the advice, or the error itself where there is more in it."""
    trouble = find_trouble(error)
    return trouble.advice if trouble in _BY_MESSAGE.values() else str(error)


def describe_eviction(memory_info: Mapping[str, Any]) -> str | None:
    """Returns a warning if Redis removes keys that it still needs, once it is full; otherwise None.

    Args:
        memory_info: The section `memory` of the command INFO.
    """
    policy = memory_info.get("maxmemory_policy", "noeviction")
    if policy == "noeviction":
        return None
    return (
        f"Redis has the maxmemory-policy {policy}: once it is full, it removes jobs and queries without a word; "
        "set maxmemory-policy to noeviction"
    )
