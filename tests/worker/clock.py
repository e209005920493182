"""Steps of Redis' clock, without a clock: everything in Redis is moved as if the clock had made the step."""

from typing import Any, cast

from redis import Redis

from worker.messages import PRIORITIES
from worker.queue import redis_keys as keys

HOUR_S = 3600


def step_clock(redis: Redis, step_s: float) -> None:
    """Leaves Redis as it would be if its clock had stepped forwards by `step_s` seconds, or backwards if negative.

    Only differences from the clock matter, so times in Redis are moved the other way: ends of leases, times of arrival,
    ends of keys, and the latest ids of streams.
    """
    step_ms = round(1000 * step_s)
    for name in (
        keys.JOB_LEASES,
        keys.QUERY_LEASES,
        *(keys.waiting_keys(priority)[1] for priority in PRIORITIES),
    ):
        for member, score in cast("list[tuple[str, float]]", redis.zrange(name, 0, -1, withscores=True)):
            if score:  # 0 stands for a job that was handed back
                redis.zadd(name, {member: score - step_ms})
    for name in cast("list[str]", redis.keys("bergson:*")):
        remaining_ms = cast("int", redis.pttl(name))
        if redis.type(name) == "stream" and step_ms < 0:
            milliseconds, _, number = _latest_id(redis, name).partition("-")
            redis.execute_command("XSETID", name, f"{int(milliseconds) - step_ms}-{number}")
        if remaining_ms > step_ms > 0 or (remaining_ms > 0 and step_ms < 0):
            redis.pexpire(name, remaining_ms - step_ms)
        elif remaining_ms > 0:
            redis.delete(name)


def _latest_id(redis: Redis, name: str) -> str:
    return cast("dict[str, Any]", redis.xinfo_stream(name))["last-generated-id"]
