"""Measures how much work waits, with Redis commands whose cost does not grow with the queue."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

from redis.asyncio import Redis

from worker.messages import PRIORITIES, Heartbeat
from worker.queue import redis_keys
from worker.queue.redis_keys import QUERY_LEASES, waiting_keys


@dataclass(frozen=True)
class QueueLoad:
    """The work that waits, and the workers that are alive to do it."""

    queries: int
    """Queries that wait or are worked on."""
    oldest_query_age_s: float
    """Seconds that the oldest query without a worker has waited; 0 if there is none."""
    jobs_queued: int
    """Jobs that wait for a worker."""
    jobs_running: int
    """Jobs that a worker has taken and that have not ended."""
    workers: Sequence[Heartbeat]
    """The latest heartbeats of the live workers."""


async def read_queue_load(redis: Redis, workers: Sequence[Heartbeat]) -> QueueLoad:
    """Returns the load at this moment.

    Args:
        redis: The connection to Redis.
        workers: The live workers, which become part of the result.

    Raises:
        RedisError: Redis does not answer.
    """
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
        (seconds, microseconds), running_jobs, taken_queries, *rest = await cast("Any", pipe.execute())
    counts_and_oldest, jobs_per_lane = rest[: 2 * len(PRIORITIES)], rest[2 * len(PRIORITIES) :]
    waiting_counts, oldest_queries = counts_and_oldest[::2], counts_and_oldest[1::2]
    now_s = seconds + microseconds / 1e6
    arrivals_s = [oldest[0][1] / 1000 for oldest in oldest_queries if oldest]
    ages_s = [now_s - arrival_s for arrival_s in arrivals_s]  # negative after a step back of the clock
    return QueueLoad(
        queries=taken_queries + sum(waiting_counts),
        oldest_query_age_s=max([0.0, *ages_s]),
        jobs_queued=sum(jobs_per_lane),
        jobs_running=running_jobs,
        workers=workers,
    )
