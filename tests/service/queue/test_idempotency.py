"""An idempotency key is remembered for exactly as long as its job can be read, and belongs to one caller and path."""

from typing import cast
from uuid import uuid4

import pytest
from redis import Redis

from bergson_core.errors import InvalidInput
from bergson_core.schemas.build import AppendSpec
from service.queue.broker import Broker
from tests.worker.fakes import make_spec
from tests.worker.helpers import make_build_job, wait_until
from worker.messages import AppendJob, CompactJob, Job
from worker.queue import redis_keys as keys
from worker.queue.job_queue import WorkerQueue
from worker.settings import Settings


def idempotency_keys(redis: Redis) -> list[str]:
    return cast("list[str]", redis.keys(f"{keys.IDEMPOTENCY_PREFIX}*"))


def make_compact(index: str = "facts") -> CompactJob:
    return CompactJob(job_id=uuid4().hex, index=index, request_id="r")


async def test_a_key_has_no_end_while_its_job_waits_or_runs(broker: Broker, redis: Redis, queue: WorkerQueue):
    await broker.submit(make_build_job("new", make_spec()), "key")
    (key,) = idempotency_keys(redis)
    assert redis.ttl(key) == -1
    claim = queue.take_job()
    assert claim is not None
    assert redis.ttl(key) == -1
    queue.hand_back(claim)
    assert redis.ttl(key) == -1


@pytest.mark.parametrize("end", ["succeeded", "failed", "cancelled", "cancelled while it waits"])
async def test_a_key_expires_at_the_same_moment_as_its_job(
    broker: Broker, redis: Redis, queue: WorkerQueue, end: str
):
    job = await broker.submit(make_build_job("new", make_spec()), "key")
    if end == "cancelled while it waits":
        await broker.cancel(job.job_id)
    else:
        claim = queue.take_job()
        assert claim is not None
        queue.finish(claim, end)
    (key,) = idempotency_keys(redis)
    end_key, end_job = redis.pttl(key), redis.pttl(keys.job_key(job.job_id))
    assert 0 < cast("int", end_job) <= cast("int", end_key) <= cast("int", end_job) + 50


async def test_a_key_gives_a_new_job_once_the_old_one_cannot_be_read_any_more(
    redis: Redis, settings: Settings
):
    async with Broker.connect(settings.model_copy(update={"keep_jobs_s": 1})) as broker:
        first = await broker.submit(make_build_job("new", make_spec()), "key")
        await broker.cancel(first.job_id)
        assert (await broker.submit(make_build_job("new", make_spec()), "key")).job_id == first.job_id
        wait_until(lambda: not redis.exists(keys.job_key(first.job_id)))
        assert idempotency_keys(redis) == []
        second = await broker.submit(make_build_job("new", make_spec()), "key")
        assert second.job_id != first.job_id
        assert second.state == "queued"


@pytest.mark.parametrize("has_old_end", [True, False])
async def test_a_key_whose_job_has_vanished_gives_a_new_job_that_it_lives_as_long_as(
    broker: Broker, redis: Redis, queue: WorkerQueue, has_old_end: bool
):
    first = await broker.submit(make_build_job("new", make_spec()), "key")
    claim = queue.take_job()
    assert claim is not None
    redis.delete(keys.job_key(first.job_id), keys.JOB_LEASES, keys.BUILDING)
    if has_old_end:
        redis.expire(*idempotency_keys(redis), 3600)
    second = await broker.submit(make_build_job("new", make_spec()), "key")
    assert (await broker.submit(make_build_job("new", make_spec()), "key")).job_id == second.job_id
    assert second.job_id != first.job_id
    (key,) = idempotency_keys(redis)
    assert redis.ttl(key) == -1


async def test_a_repeated_request_gets_the_state_that_the_job_has_now(broker: Broker, queue: WorkerQueue):
    await broker.submit(make_build_job("new", make_spec()), "key")
    assert queue.take_job() is not None
    assert (await broker.submit(make_build_job("new", make_spec()), "key")).state == "running"


async def test_callers_do_not_get_each_others_jobs_by_the_same_key(broker: Broker):
    first = await broker.submit(make_compact("a"), "key", lane="ada")
    lanes = ["bob", "", "ada:", 'ada", "']
    for number, lane in enumerate(lanes):
        other = await broker.submit(make_compact(f"b-{number}"), "key", lane=lane)
        assert other.job_id != first.job_id
    for prefixed in ("ada:key", ":key"):
        assert (await broker.submit(make_compact(f"c{len(prefixed)}"), prefixed)).job_id != first.job_id


async def test_one_caller_may_use_a_key_for_calls_of_different_paths(broker: Broker, queue: WorkerQueue):
    jobs: list[Job] = [
        make_build_job("new", make_spec()),
        make_compact("facts"),
        make_compact("poems"),
        AppendJob(job_id="a-1", index="news", spec=AppendSpec(documents=[{"text": "a"}]), request_id="r"),
    ]
    records = [await broker.submit(job, "key", "ada") for job in jobs]
    assert len({record.job_id for record in records}) == 4
    assert [(await broker.submit(job, "key", "ada")).job_id for job in jobs] == [
        record.job_id for record in records
    ]


async def test_a_key_that_came_with_another_body_for_the_same_path_is_refused(broker: Broker):
    await broker.submit(make_build_job("new", make_spec()), "key")
    with pytest.raises(InvalidInput, match="another body"):
        await broker.submit(make_build_job("other", make_spec()), "key")
