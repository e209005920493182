"""Repeats calls to a Redis that does not answer, with growing pauses."""

import logging
from collections.abc import Callable
from typing import Final, TypeVar, cast

from redis import RedisError
from tenacity import RetryCallState, Retrying, retry_if_exception_type, wait_exponential

from worker.queue.redis_errors import describe_reason, find_trouble

logger = logging.getLogger(__name__)
T = TypeVar("T")

MIN_PAUSE_S: Final = 0.05
MAX_PAUSE_S: Final = 1.0


def retry_redis(call: Callable[[], T], give_up: Callable[[float], bool]) -> T:
    """Returns what `call` returns, once Redis answers.

    The first pause is `MIN_PAUSE_S` long, and each one twice as long as the one before, up to `MAX_PAUSE_S`.

    Args:
        call: The call; it is repeated after a `redis.RedisError`, and after no other error.
        give_up: Called after each such error with the length in seconds of the coming pause; True ends the attempts.

    Raises:
        redis.RedisError: The last one, after `give_up` returned True.
    """
    retrying = Retrying(
        retry=retry_if_exception_type(RedisError),
        wait=wait_exponential(multiplier=MIN_PAUSE_S, max=MAX_PAUSE_S),
        stop=lambda state: give_up(state.upcoming_sleep),
        before_sleep=_log_pause,
        reraise=True,
    )
    return retrying(call)


def _log_pause(state: RetryCallState) -> None:
    """Logs the first error and those before a long pause, so that a short outage is one line."""
    if state.outcome is not None and (state.attempt_number == 1 or state.upcoming_sleep >= MAX_PAUSE_S):
        error = cast("RedisError", state.outcome.exception())
        logger.warning("%s, trying again: %s", find_trouble(error).summary, describe_reason(error))
