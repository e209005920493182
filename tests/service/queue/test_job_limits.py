"""Jobs that have not ended are bounded, in number and in bytes, by API key and in all."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest
from redis import Redis

from bergson_core.errors import IndexExists, InvalidInput, QueueFull
from service.queue.broker import Broker
from tests.worker.fakes import make_spec
from tests.worker.helpers import expire_leases, make_build_job, submit_job
from worker.messages import BuildJob, EstimateJob, Heartbeat
from worker.queue import redis_keys as keys
from worker.queue.job_queue import WorkerQueue
from worker.settings import Settings

Connect = Callable[..., "asynccontextmanager[Broker]"]
HEARTBEAT = Heartbeat(worker_id="w-1", pid=1, host="h", device="cpu", started_at=0, state="idle")


@pytest.fixture
def connect_broker(redis: Redis, settings: Settings):
    """`connect_broker(**settings)` yields a broker with these settings."""

    @asynccontextmanager
    async def connect(**changes: int) -> AsyncIterator[Broker]:
        async with Broker.connect(settings.model_copy(update=changes)) as broker:
            yield broker

    return connect


def make_job(number: int, text: str | None = None) -> BuildJob:
    """Returns a build of the index `i-NUMBER`, with an inline document if there is a text."""
    changes = {} if text is None else {"dataset": None, "documents": [{"text": text}]}
    return make_build_job(f"i-{number}", make_spec(**changes))


async def fill(broker: Broker, count: int, lane: str, first: int = 0) -> list[str]:
    records = [await broker.submit(make_job(first + k), lane=lane) for k in range(count)]
    return [record.job_id for record in records]


async def test_jobs_of_an_api_key_are_bounded_and_other_keys_still_get_theirs_in(connect_broker: Connect):
    async with connect_broker(max_queued_jobs_per_key=2, max_queued_jobs=5) as broker:
        await fill(broker, 2, "ada")
        with pytest.raises(QueueFull, match="2 jobs of this API key"):
            await broker.submit(make_job(9), lane="ada")
        await fill(broker, 2, "bob", first=10)


async def test_jobs_are_bounded_in_all(connect_broker: Connect):
    async with connect_broker(max_queued_jobs_per_key=2, max_queued_jobs=3) as broker:
        await fill(broker, 2, "ada")
        await fill(broker, 1, "bob", first=10)
        with pytest.raises(QueueFull, match=r"^3 jobs, of"):
            await broker.submit(make_job(20), lane="eve")


async def test_callers_without_a_key_may_have_as_many_jobs_as_there_may_be_in_all(connect_broker: Connect):
    async with connect_broker(max_queued_jobs_per_key=1, max_queued_jobs=3) as broker:
        await fill(broker, 3, "")
        with pytest.raises(QueueFull):
            await broker.submit(make_job(9))


async def test_the_bytes_of_jobs_are_bounded_by_key_and_in_all(connect_broker: Connect):
    text = "é" * 10_000
    size = len(make_job(0, text).model_dump_json().encode())
    limits = {"max_queued_job_bytes_per_key": 2 * size + 100, "max_queued_job_bytes": 3 * size + 100}
    async with connect_broker(**limits) as broker:
        for number in range(2):
            await broker.submit(make_job(number, text), lane="ada")
        with pytest.raises(QueueFull, match=f"of this API key, of {2 * size:,} bytes"):
            await broker.submit(make_job(2, text), lane="ada")
        await broker.submit(make_job(3, text), lane="bob")
        with pytest.raises(QueueFull, match=f"^3 jobs, of {3 * size:,} bytes"):
            await broker.submit(make_job(4, text), lane="eve")


async def test_a_job_that_no_wait_would_make_room_for_is_invalid(connect_broker: Connect):
    async with connect_broker(max_queued_job_bytes_per_key=5000) as broker:
        with pytest.raises(InvalidInput, match="expected at most 5,000"):
            await broker.submit(make_job(0, "x" * 5000), lane="ada")
        await broker.submit(make_job(0, "x" * 5000))  # the bound of a key is for keys


async def test_running_jobs_count_and_jobs_that_have_ended_do_not(
    connect_broker: Connect, queue: WorkerQueue
):
    async with connect_broker(max_queued_jobs_per_key=2) as broker:
        first, second = await fill(broker, 2, "ada")
        claim = queue.take_job()
        assert claim is not None
        assert claim.record.job_id == first
        with pytest.raises(QueueFull):
            await broker.submit(make_job(5), lane="ada")
        queue.finish(claim, "succeeded")
        await fill(broker, 1, "ada", first=6)
        with pytest.raises(QueueFull):
            await broker.submit(make_job(7), lane="ada")
        await broker.cancel(second)
        await fill(broker, 1, "ada", first=8)


async def test_a_job_that_was_handed_back_or_whose_worker_died_counts_once(
    connect_broker: Connect, queue: WorkerQueue, redis: Redis
):
    async with connect_broker(max_queued_jobs_per_key=2) as broker:
        await fill(broker, 1, "ada")
        for _ in range(2):
            claim = queue.take_job()
            assert claim is not None
            queue.hand_back(claim)
        assert queue.take_job() is not None
        expire_leases(redis)
        await fill(broker, 1, "ada", first=1)
        with pytest.raises(QueueFull):
            await broker.submit(make_job(2), lane="ada")


async def test_of_many_jobs_at_once_exactly_as_many_as_may_wait_get_in(connect_broker: Connect, redis: Redis):
    async with connect_broker(max_queued_jobs=7) as broker:
        outcomes = await asyncio.gather(
            *(broker.submit(make_job(number)) for number in range(30)), return_exceptions=True
        )
    assert sorted(type(outcome).__name__ for outcome in outcomes) == ["JobRecord"] * 7 + ["QueueFull"] * 23
    assert len(redis.hgetall(keys.BUILDING)) == 7  # a refused build reserves no name


async def test_estimates_are_jobs_and_are_bounded_as_well(connect_broker: Connect, queue: WorkerQueue):
    queue.send_heartbeat(HEARTBEAT)
    async with connect_broker(max_queued_jobs_per_key=1) as broker:
        await fill(broker, 1, "ada")
        with pytest.raises(QueueFull):
            await broker.estimate(EstimateJob(job_id="e-1", spec=make_spec(), request_id="r"), 1, "ada")


async def test_a_repeated_request_gets_its_job_and_a_taken_name_its_error_although_the_queue_is_full(
    connect_broker: Connect,
):
    async with connect_broker(max_queued_jobs=1) as broker:
        job = await broker.submit(make_job(0), "key")
        assert await broker.submit(make_job(0), "key") == job
        with pytest.raises(IndexExists):
            await broker.submit(make_job(0))


async def test_keys_that_vanish_or_have_another_type_do_not_count_for_ever(
    connect_broker: Connect, redis: Redis
):
    submit_job(redis, "j-1", "one")
    submit_job(redis, "j-2", "two")
    redis.delete(keys.job_key("j-1"))
    redis.delete(keys.job_key("j-2"))
    redis.set(keys.job_key("j-2"), "a text")
    redis.zadd(keys.JOB_LEASES, {"j-3": 1})
    async with connect_broker(max_queued_jobs=4) as broker:
        await fill(broker, 1, "ada")
        with pytest.raises(QueueFull, match=r"^4 jobs"):
            await fill(broker, 1, "ada", first=1)
