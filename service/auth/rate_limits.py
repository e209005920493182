"""Limits the calls of each API key: how many in a span of time, and how many open at once; and all open calls together.

All web processes together count the calls in a span of time, in Redis, with the `limits` library. Its window slides: of
the span before the current one, the part counts that lies within one span of now. Each web process counts open calls
for itself, so that a process that dies leaves no count behind.
"""

import math
import time
from collections import Counter
from typing import Any, cast

from limits import RateLimitItem
from limits.aio.storage import MemoryStorage, RedisStorage, SlidingWindowCounterSupport, Storage
from limits.aio.strategies import SlidingWindowCounterRateLimiter
from redis.asyncio import ConnectionPool

from bergson_core.errors import InvalidInput, QueueFull, RateLimited
from service.auth.api_keys import Caller, parse_rate
from service.queue.redis_calls import PROBE_WAIT_S, call_redis
from worker.queue import redis_keys


def redis_storage(pool: ConnectionPool) -> Storage:
    """Returns the storage in which all web processes count together.

    The extra `limits[redis]`, which serves its blocking calls, installs redis-py up to version 7. The asynchronous
    calls that are made here work with version 8 too; a test makes sure of that.
    """
    options: dict[str, Any] = {"connection_pool": pool, "key_prefix": redis_keys.RATE_PREFIX}
    return RedisStorage("async+redis://", implementation="redispy", **options)


class RateLimiter:
    """Admits calls as long as they are within the limits of their key, and few enough are open in all.

    Args:
        storage: Where calls are counted. By default each process counts for itself.
        max_open_calls: Most calls that may be open at once. A key may have as many as the others leave free, which
            keeps room for the others however much it asks (dynamic thresholds, Choudhury and Hahne 1998).
    """

    def __init__(self, storage: Storage | None = None, max_open_calls: float = math.inf):
        storage = storage or MemoryStorage()
        self._max_open_calls = max_open_calls
        self._rates = SlidingWindowCounterRateLimiter(storage)
        self._storage = cast("SlidingWindowCounterSupport", storage)
        self._open_calls: Counter[str] = Counter()

    async def count_calls(self, caller: Caller, calls: int) -> None:
        """Counts a call that has started as several.

        Args:
            caller: Who makes the call.
            calls: How many more calls to count: one for each further query of a batch, and what each query counts
                beyond itself (`AttributionQuery.extra_calls`).

        Raises:
            InvalidInput: There are more than the key may ever make at once.
            RateLimited: There are more than the key may make now.
            RedisUnavailable: The calls cannot be counted.
        """
        if caller.rate is not None and calls >= parse_rate(caller.rate).amount:
            raise InvalidInput(
                f"the rate limit of this key is {caller.rate}, got {calls + 1} queries, each document to verify and "
                "each 32 candidates to rescore counted as one, and totals as ten: send fewer at once"
            )
        await self._count(caller, calls)

    async def start_call(self, caller: Caller) -> None:
        """Counts a call as open, until `end_call` is called for it.

        Raises:
            QueueFull: Too many calls are open; the call is not counted as open.
            RateLimited: The key allows no further call now; the call is not counted as open.
            RedisUnavailable: The call cannot be counted.
        """
        free = self._max_open_calls - self._open_calls.total()
        if free <= 0 or (caller.id and self._open_calls[caller.id] >= free):
            whose = f"of this key are open, and only {free:.0f} more may be" if free > 0 else "are open"
            count = self._open_calls[caller.id] if free > 0 else self._open_calls.total()
            raise QueueFull(f"{count} requests {whose}: try again in a second")
        if caller.concurrent is not None and self._open_calls[caller.id] >= caller.concurrent:
            raise RateLimited.with_wait(
                f"{caller.concurrent} calls with this key are open, which is its limit: wait until one has ended",
                1,
            )
        self._open_calls[caller.id] += 1
        try:
            await self._count(caller, 1)
        except BaseException:
            self.end_call(caller)
            raise

    def end_call(self, caller: Caller) -> None:
        """Counts a call as no longer open."""
        self._open_calls[caller.id] -= 1
        if not self._open_calls[caller.id]:
            del self._open_calls[caller.id]

    async def _count(self, caller: Caller, calls: int) -> None:
        if caller.rate is None or not calls:
            return
        rate = parse_rate(caller.rate)
        free_at = await call_redis(self._hit(rate, caller.id, calls), PROBE_WAIT_S)
        if free_at is None:
            return
        wait_s = max(1, math.ceil(free_at - time.time()))
        raise RateLimited.with_wait(
            f"the rate limit of this key is {caller.rate}: try again in {wait_s} s", wait_s
        )

    async def _hit(self, rate: RateLimitItem, caller_id: str, calls: int) -> float | None:
        """Counts calls if the rate allows them; otherwise returns when it may, in seconds of Unix time."""
        if await self._rates.hit(rate, caller_id, cost=calls):
            return None
        span_s = rate.get_expiry()
        _, previous_s, _, current_s = await self._storage.get_sliding_window(rate.key_for(caller_id), span_s)
        if previous_s > span_s + 1 or current_s > 2 * span_s + 1:
            # The clock of Redis has stepped back, so that these counts would last for as long as the step.
            await self._rates.clear(rate, caller_id)
            if await self._rates.hit(rate, caller_id, cost=calls):
                return None
        return (await self._rates.get_window_stats(rate, caller_id)).reset_time
