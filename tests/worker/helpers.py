"""Helpers for tests of the queue: they send messages as a web process does, and read what is in Redis."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, cast
from uuid import uuid4

import pytest
from redis import Redis, RedisError

from bergson_core.schemas.build import BuildSpec
from tests.worker.fakes import make_query, make_spec
from worker.messages import PRIORITIES, BuildJob, Job, JobRecord, Query, Reply
from worker.queue import lua_scripts, query_queue
from worker.queue import redis_keys as keys
from worker.queue.job_queue import ClaimedJob, WorkerQueue
from worker.queue.redis_client import connect
from worker.settings import Settings

REPOSITORY = Path(__file__).parents[2]
REPLY_TO = keys.REPLIES_PREFIX + "web"
TIMEOUT_S = 30.0
on_one_redis = pytest.mark.parametrize("redis_at", ["system"], indirect=True)
"""Runs a test on one Redis, whose user has no more rights than the worker needs, since no version changes its claim."""


def wait_until(condition: Callable[[], Any]) -> Any:
    """Returns what `condition` returns once that is true; fails after `TIMEOUT_S`."""
    end = time.monotonic() + TIMEOUT_S
    while not (value := condition()):
        assert time.monotonic() < end, f"waited {TIMEOUT_S:g} s"
        time.sleep(0.005)
    return value


async def wait_until_async(condition: Callable[[], Awaitable[Any]]) -> Any:
    """Does the same as `wait_until` for an asynchronous condition."""
    end = time.monotonic() + TIMEOUT_S
    while True:
        if value := await condition():
            return value
        assert time.monotonic() < end, f"waited {TIMEOUT_S:g} s"
        await asyncio.sleep(0.005)


def read_pid(url: str) -> int:
    """Returns the process id of the Redis at `url`."""
    with connect(url) as client:
        return client.info("server")["process_id"]  # pyright: ignore[reportIndexIssue]


def is_answering(url: str) -> bool:
    """Returns whether a Redis answers at `url`."""
    with connect(url) as client:
        try:
            return bool(client.ping())
        except RedisError:
            return False


def make_build_job(index: str, spec: BuildSpec, request_id: str = "r") -> BuildJob:
    """Returns a new job, as a web process makes it."""
    return BuildJob(job_id=uuid4().hex, index=index, spec=spec, request_id=request_id)


def submit_job(
    redis: Redis, job_id: str = "j-1", index: str = "facts", lane: str = "", job: Job | None = None
) -> None:
    """Submits a job, as a web process does: a build, or another one that is given."""
    job = job or BuildJob(job_id=job_id, index=index, spec=make_spec(), request_id="r")
    record = JobRecord(job_id=job_id, kind=job.kind, index=index, state="queued", created_at=time.time())
    redis.eval(
        *(lua_scripts.SUBMIT_JOB, 8, "-", keys.BUILDING, keys.job_key(job_id), keys.events_key(job_id)),
        *(keys.JOBS_BY_CREATION, keys.JOB_LANES, keys.JOB_LANE_PREFIX + lane, keys.JOB_LEASES),
        *(
            record.changed_index or "",
            job_id,
            "",
            job.model_dump_json(),
            record.model_dump_json(),
            "1",
            "0",
            "",
            lane,
        ),
        *(keys.JOB_LANE_PREFIX, keys.JOB_PREFIX, 10_000, 2**30, 10_000, 2**30),
    )


def send_query(
    redis: Redis,
    query_id: str = "q-1",
    timeout_s: float = 30,
    lane: str = "",
    raw: str | bytes | None = None,
    **fields: Any,
) -> Query:
    """Sends a query, as a web process does, and returns it; `raw` is sent as the message in its place."""
    now = time.time()
    query = Query(
        query_id=query_id,
        reply_to=REPLY_TO,
        request_id="r",
        sent_at=now,
        deadline=now + timeout_s,
        query=make_query(),
    ).model_copy(update=fields)
    arguments = query_queue.ask_query_arguments(query, lane, Settings())
    if raw is not None:
        arguments["args"][3] = raw
    assert redis.register_script(lua_scripts.ASK_QUERY)(**arguments) == "asked"
    return query


def count_waiting(redis: Redis) -> int:
    """Returns the number of queries that no worker has taken."""
    return sum(cast("int", redis.zcard(keys.waiting_keys(priority)[0])) for priority in PRIORITIES)


def remaining_query_keys(redis: Redis) -> list[str]:
    """Returns the keys of queries that are in Redis, except for turns and the bell."""
    names = cast("list[str]", redis.keys("bergson:quer*"))
    return [name for name in names if not name.endswith((":turns", ":bell"))]


def expire_leases(redis: Redis, leases: str = keys.JOB_LEASES) -> None:
    """Ends the leases of all taken jobs, or of all taken queries, as if their workers had long been silent."""
    for name in cast("list[str]", redis.zrange(leases, 0, -1)):
        redis.zadd(leases, {name: 1})


def read_record(redis: Redis, job_id: str = "j-1") -> JobRecord:
    return JobRecord.model_validate_json(cast("str", redis.hget(keys.job_key(job_id), "record")))


def read_replies(redis: Redis) -> list[Reply]:
    entries = cast("list[tuple[str, dict[str, str]]]", redis.xrange(REPLY_TO))
    return [Reply.model_validate_json(fields["reply"]) for _, fields in entries]


def remaining_job_keys(redis: Redis) -> list[str]:
    """Returns the keys that exist while jobs wait or are worked on."""
    names = cast("list[str]", redis.keys("bergson:jobs:*"))
    return [name for name in names if name not in (keys.JOBS_BY_CREATION, keys.ENDED_JOBS)]


def take_one_job(queue: WorkerQueue) -> ClaimedJob:
    """Takes the next job, which has to be there."""
    claim = queue.take_job()
    assert claim is not None
    return claim


def take_query_ids(queue: WorkerQueue) -> list[str]:
    """Takes the next queries and returns their ids."""
    return [query.query_id for query in queue.queries.take()]


def wait_for_replies(redis: Redis, count: int = 1) -> dict[str, Reply]:
    """Returns the replies by query_id, once there are `count` of them."""

    def replies_by_id() -> dict[str, Reply] | None:
        replies = read_replies(redis)
        return {reply.query_id: reply for reply in replies} if len(replies) >= count else None

    return wait_until(replies_by_id)


def problem_code(reply: Reply) -> str:
    assert reply.problem is not None
    return reply.problem.code
