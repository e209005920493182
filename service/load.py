"""How much work there is, found out by commands of Redis whose cost does not grow with the queue."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

from redis import ResponseError
from redis.asyncio import Redis

from worker import queue
from worker.messages import Heartbeat
from worker.streams import GROUP


@dataclass(frozen=True)
class QueueLoad:
    """What waits and who is there to do it."""

    queries: int
    """Queries that wait or are worked on."""
    oldest_query_age_s: float
    """Seconds since the oldest of them was sent, by the clock of Redis; 0 where there is none."""
    jobs_queued: int
    """Jobs that no worker has taken."""
    jobs_running: int
    """Jobs that a worker has taken, and that have not ended since."""
    workers: Sequence[Heartbeat]
    """The live workers."""


async def read_load(redis: Redis, workers: Sequence[Heartbeat]) -> QueueLoad:
    """The load at this moment. Raises `RedisError`."""
    async with redis.pipeline(transaction=False) as pipe:
        pipe.time()
        pipe.xlen(queue.QUERIES)
        pipe.xrange(queue.QUERIES, count=1)
        pipe.xlen(queue.JOBS)
        pipe.xpending(queue.JOBS, GROUP)
        now, queries, oldest, jobs, taken = await cast("Any", pipe.execute(raise_on_error=False))
    for answer in (now, queries, oldest, jobs):
        if isinstance(answer, Exception):
            raise answer
    if isinstance(taken, ResponseError):  # no worker has made the group yet
        taken = {"pending": 0}
    sent_ms = int(oldest[0][0].partition("-")[0]) if oldest else None
    age_s = 0.0 if sent_ms is None else max(0.0, now[0] + now[1] / 1e6 - sent_ms / 1000)
    return QueueLoad(
        queries=queries,
        oldest_query_age_s=age_s,
        jobs_queued=max(0, jobs - taken["pending"]),
        jobs_running=taken["pending"],
        workers=workers,
    )
