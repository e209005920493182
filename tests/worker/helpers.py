"""What the tests of the queue do to Redis, and see in it."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, cast
from uuid import uuid4

from redis import Redis, RedisError

from bergson_core.schemas.build import BuildSpec
from tests.worker.fakes import question, spec
from worker.messages import PRIORITIES, BuildJob, JobRecord, Query, Reply
from worker.queue import lua_scripts, query_queue, redis_keys
from worker.queue import redis_keys as keys
from worker.queue.job_queue import WorkerQueue
from worker.queue.redis_client import connect
from worker.settings import Settings

REPOSITORY = Path(__file__).parents[2]
REPLY_TO = redis_keys.REPLIES_PREFIX + "web"
TIMEOUT_S = 30.0


def until(condition: Callable[[], Any]) -> Any:
    """What `condition` returns once it is true; fails after half a minute."""
    end = time.monotonic() + TIMEOUT_S
    while not (value := condition()):
        assert time.monotonic() < end, f"waited {TIMEOUT_S:g} s"
        time.sleep(0.005)
    return value


async def soon(condition: Callable[[], Awaitable[Any]]) -> Any:
    """`until` for a condition that is awaited."""
    end = time.monotonic() + TIMEOUT_S
    while True:
        if value := await condition():
            return value
        assert time.monotonic() < end, f"waited {TIMEOUT_S:g} s"
        await asyncio.sleep(0.005)


def pid_of(url: str) -> int:
    """Process id of the Redis at `url`."""
    with connect(url) as client:
        return client.info("server")["process_id"]  # pyright: ignore[reportIndexIssue]


def answers(url: str) -> bool:
    """Whether a Redis answers at `url`."""
    with connect(url) as client:
        try:
            return bool(client.ping())
        except RedisError:
            return False


def job_of(index: str, of: BuildSpec, request_id: str = "r") -> BuildJob:
    """A new job, as the web process makes it."""
    return BuildJob(job_id=uuid4().hex, index=index, spec=of, request_id=request_id)


def submit(redis: Redis, job_id: str = "j-1", index: str = "facts", lane: str = "") -> None:
    """What the web process does."""
    job = BuildJob(job_id=job_id, index=index, spec=spec(), request_id="r")
    record = JobRecord(job_id=job_id, kind="build", index=index, state="queued", created_at=time.time())
    redis.eval(
        *(lua_scripts.SUBMIT_JOB, 7, "-", keys.BUILDING, keys.job_key(job_id), keys.events_key(job_id)),
        *(keys.JOBS_BY_CREATION, keys.JOB_LANES, keys.JOB_LANE_PREFIX + lane, index, job_id, ""),
        *(job.model_dump_json(), record.model_dump_json(), "1", "0", "", lane),
    )


def send(
    redis: Redis, query_id: str = "q-1", timeout_s: float = 30, lane: str = "", raw: str = "", **fields: Any
) -> Query:
    """What the web process does; `raw` is sent instead of the query."""
    now = time.time()
    query = Query(
        query_id=query_id,
        reply_to=REPLY_TO,
        request_id="r",
        sent_at=now,
        deadline=now + timeout_s,
        query=question(),
    ).model_copy(update=fields)
    arguments = query_queue.ask_query_arguments(query, lane, Settings())
    if raw:
        arguments["args"][3] = raw
    assert redis.register_script(lua_scripts.ASK_QUERY)(**arguments) == "asked"
    return query


def waiting(redis: Redis) -> int:
    """Queries that no worker has taken."""
    return sum(cast("int", redis.zcard(redis_keys.waiting_keys(one)[0])) for one in PRIORITIES)


def left(redis: Redis) -> list[str]:
    """What there is of queries, but for whose turn it is."""
    names = cast("list[str]", redis.keys("bergson:quer*"))
    return [name for name in names if not name.endswith((":turns", ":bell"))]


def let_lapse(redis: Redis, taken: str = keys.JOB_LEASES) -> None:
    """As if whoever took these jobs, or queries, had been silent for an hour."""
    for one in cast("list[str]", redis.zrange(taken, 0, -1)):
        redis.zadd(taken, {one: 1})


def record_of(redis: Redis, job_id: str = "j-1") -> JobRecord:
    return JobRecord.model_validate_json(cast("str", redis.hget(keys.job_key(job_id), "record")))


def replies(redis: Redis) -> list[Reply]:
    entries = cast("list[tuple[str, dict[str, str]]]", redis.xrange(REPLY_TO))
    return [Reply.model_validate_json(fields["reply"]) for _, fields in entries]


def jobs_left(redis: Redis) -> list[str]:
    """Keys of jobs that wait or are worked on."""
    names = cast("list[str]", redis.keys("bergson:jobs:*"))
    return [name for name in names if name != keys.JOBS_BY_CREATION]


def taken_ids(queue: WorkerQueue) -> list[str]:
    """Takes what is next."""
    return [query.query_id for query in queue.queries.take()]


def answered(redis: Redis, count: int = 1) -> dict[str, Reply]:
    return until(lambda: len(found := replies(redis)) >= count and {one.query_id: one for one in found})


def problem_of(reply: Reply) -> str:
    assert reply.problem is not None
    return reply.problem.code
