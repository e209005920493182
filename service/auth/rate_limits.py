"""What one API key may ask at once: calls in a span of time, and calls that are open.

Calls in a span of time are counted by the `limits` library in Redis, by all web processes together, with a window
that slides: of the span before, the part counts that lies within the last one. Open calls are counted in each web
process by itself, so that a process that dies leaves no count behind.
"""

import math
import time
from collections import Counter
from typing import Any

from limits.aio.storage import MemoryStorage, RedisStorage, Storage
from limits.aio.strategies import SlidingWindowCounterRateLimiter
from redis import RedisError
from redis.asyncio import ConnectionPool

from bergson_core.errors import InvalidInput, RateLimited, RedisUnavailable
from service.auth.api_keys import Caller, parse_rate
from worker.queue import redis_keys


def redis_storage(pool: ConnectionPool) -> Storage:
    """Counts of all web processes, in Redis.

    `limits` installs redis-py only up to 7 for its calls that block; these, which do not, hold with 8 (a test counts).
    """
    options: dict[str, Any] = {"connection_pool": pool, "key_prefix": redis_keys.RATE_PREFIX}
    return RedisStorage("async+redis://", implementation="redispy", **options)


class RateLimiter:
    """Admits calls, as long as they are within what their key may; in this process alone without a `storage`."""

    def __init__(self, storage: Storage | None = None):
        self._rates = SlidingWindowCounterRateLimiter(storage or MemoryStorage())
        self._open: Counter[str] = Counter()

    async def count_calls(self, caller: Caller, calls: int) -> None:
        """Counts a call as so many more: for each further question of a batch, and each document that is unlearned.

        Raises `InvalidInput` where they are more than the key may ever ask at once, `RateLimited`, `RedisUnavailable`.
        """
        if caller.rate is not None and calls >= parse_rate(caller.rate).amount:
            raise InvalidInput(
                f"this key may ask {caller.rate}, got {calls + 1} questions, each document to verify counted as one: "
                "send fewer at once"
            )
        await self._count(caller, calls)

    async def start_call(self, caller: Caller) -> None:
        """Counts a call, which has to `leave`. Raises `RateLimited` and `RedisUnavailable`, and then counts none."""
        if caller.concurrent is not None and self._open[caller.id] >= caller.concurrent:
            raise RateLimited.of(
                f"{caller.concurrent} calls with this key are open, and no more may be: wait until one has ended",
                1,
            )
        self._open[caller.id] += 1
        try:
            await self._count(caller, 1)
        except BaseException:
            self.end_call(caller)
            raise

    def end_call(self, caller: Caller) -> None:
        """A call has ended."""
        self._open[caller.id] -= 1
        if not self._open[caller.id]:
            del self._open[caller.id]

    async def _count(self, caller: Caller, calls: int) -> None:
        if caller.rate is None or not calls:
            return
        rate = parse_rate(caller.rate)
        try:
            if await self._rates.hit(rate, caller.id, cost=calls):
                return
            free_at = (await self._rates.get_window_stats(rate, caller.id)).reset_time
        except RedisError as error:
            raise RedisUnavailable.because(str(error)) from error
        wait_s = max(1, math.ceil(free_at - time.time()))
        raise RateLimited.of(f"this key may ask {caller.rate}: try again in {wait_s} s", wait_s)
