"""Calls to Redis that end in time, even if Redis has stopped in the middle of one.

A call is a task of its own, and the caller waits for the task and not in it. A timeout inside the task would not do:
redis-py sends its commands with `asyncio.wait_for`, which in Python 3.11 may swallow a cancellation, so that the call
goes on until the timeout of its connection.
"""

import asyncio
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager
from typing import Any, Final, TypeVar

from redis import RedisError

from bergson_core.errors import RedisUnavailable
from worker.queue.redis_errors import unavailable_error

T = TypeVar("T")

REDIS_WAIT_S: Final = 4.0
"""Longest time that a request waits for an answer of Redis, unless the request has a deadline of its own."""
PROBE_WAIT_S: Final = 1.0
"""The same for health checks, metrics and the limits of API keys."""

_background_tasks: set[asyncio.Task[Any]] = set()  # the event loop alone does not keep a task alive


@contextmanager
def translate_redis_errors() -> Iterator[None]:
    """Raises `RedisUnavailable`, or `RedisFull`, in place of an error of Redis."""
    try:
        yield
    except RedisError as error:
        raise unavailable_error(error) from error


async def call_redis(work: Coroutine[Any, Any, T], limit_s: float = REDIS_WAIT_S) -> T:
    """Returns what `work`, which calls Redis, returns.

    Args:
        work: The calls. They are cancelled if they take too long, or if the caller is cancelled; Redis may have
            received them all the same.
        limit_s: Longest time in seconds that they may take.

    Raises:
        RedisUnavailable: Redis does not answer in time, or it refuses (`RedisFull` if it is full).
    """
    task = asyncio.create_task(work)
    try:
        await asyncio.wait([task], timeout=max(0.0, limit_s))
    finally:
        if not task.done():
            run_in_background(cancel_and_wait(task))
    if not task.done():
        raise RedisUnavailable.because(f"no reply within {max(0.0, limit_s):.1f} s")
    with translate_redis_errors():
        return task.result()


def run_in_background(work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
    """Starts a task that goes on although nobody waits for it; it has to handle its own errors."""
    task = asyncio.create_task(work)
    _background_tasks.add(task)
    task.add_done_callback(_background_tasks.discard)
    return task


async def cancel_and_wait(task: asyncio.Task[Any]) -> None:
    """Cancels a task, again and again until it has ended, and drops its result.

    A single cancellation may get lost, as explained above.
    """
    while not task.done():
        task.cancel()
        await asyncio.wait([task], timeout=0.1)
    if not task.cancelled():
        task.exception()  # otherwise asyncio logs that nobody has retrieved it
