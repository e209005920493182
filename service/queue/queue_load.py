"""How much work there is, found out by commands of Redis whose cost does not grow with the queue."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

from redis.asyncio import Redis

from worker.messages import PRIORITIES, Heartbeat
from worker.queue import redis_keys
from worker.queue.redis_keys import QUERY_LEASES, waiting_keys


@dataclass(frozen=True)
class QueueLoad:
    """What waits and who is there to do it."""

    queries: int
    """Queries that wait or are worked on."""
    oldest_query_age_s: float
    """Seconds that the oldest of those has waited that no worker has taken; 0 where there is none."""
    jobs_queued: int
    """Jobs that no worker has taken."""
    jobs_running: int
    """Jobs that a worker has taken, and that have not ended since."""
    workers: Sequence[Heartbeat]
    """The live workers."""


async def read_queue_load(redis: Redis, workers: Sequence[Heartbeat]) -> QueueLoad:
    """The load at this moment. Raises `RedisError`."""
    lanes = await cast("Any", redis.lrange(redis_keys.JOB_LANES, 0, -1))
    async with redis.pipeline(transaction=False) as pipe:
        pipe.time()
        pipe.zcard(redis_keys.JOB_LEASES)
        pipe.zcard(QUERY_LEASES)
        for priority in PRIORITIES:
            waiting, since, _ = waiting_keys(priority)
            pipe.zcard(waiting)
            pipe.zrange(since, 0, 0, withscores=True)
        for lane in lanes:
            pipe.llen(redis_keys.JOB_LANE_PREFIX + lane)
        now, running, at_work, *found = await cast("Any", pipe.execute())
    queries, queued = found[: 2 * len(PRIORITIES)], found[2 * len(PRIORITIES) :]
    now_s, came_ms = now[0] + now[1] / 1e6, [oldest[0][1] for oldest in queries[1::2] if oldest]
    return QueueLoad(
        queries=at_work + sum(queries[::2]),
        oldest_query_age_s=max([now_s - came / 1000 for came in came_ms], default=0.0),
        jobs_queued=sum(queued),
        jobs_running=running,
        workers=workers,
    )
