"""The web process after its Redis' clock has made a step, and with a Redis whose clock is behind the first one's."""

import asyncio
import time

import pytest
from redis import Redis

from bergson_core.errors import NoWorker, RateLimited
from bergson_core.schemas.results import Progress
from service.auth.api_keys import Caller
from service.auth.rate_limits import RateLimiter, redis_storage
from service.queue.broker import Broker
from tests.worker.clock import HOUR_S, step_clock
from tests.worker.fakes import make_query, make_spec, publish_index
from tests.worker.helpers import make_build_job, send_query, wait_until_async
from worker.messages import Heartbeat
from worker.queue import redis_keys
from worker.queue.job_queue import WorkerQueue
from worker.settings import Settings

HEARTBEAT = Heartbeat(worker_id="w-1", pid=1, host="h", device="cpu", started_at=0, state="idle")
FUTURE_ID = f"{round(1000 * (time.time() + HOUR_S))}-7"


@pytest.fixture
async def live_worker(broker: Broker, settings: Settings, start_worker) -> None:
    publish_index(settings.indexes_dir / "facts")
    start_worker()
    await wait_until_async(broker.list_workers)


@pytest.mark.parametrize("step_s", [-HOUR_S, HOUR_S])
async def test_answers_arrive_after_a_step(broker: Broker, redis: Redis, live_worker: None, step_s: int):
    await broker.ask(make_query(), "r", 10)
    step_clock(redis, step_s)
    await wait_until_async(broker.list_workers)
    assert (await broker.ask(make_query(), "r", 10)).index == "facts"


async def test_answers_arrive_through_a_new_redis_with_a_smaller_clock(
    broker: Broker, redis: Redis, live_worker: None
):
    redis.xadd(broker._replies.stream, {"reply": "unreadable"}, id=FUTURE_ID)
    await asyncio.to_thread(redis.xlen, broker._replies.stream)
    await broker.ask(make_query(), "r", 10)
    redis.flushdb()
    await wait_until_async(broker.list_workers)
    assert (await broker.ask(make_query(), "r", 10)).index == "facts"


async def test_a_stream_of_events_goes_on_after_a_step_back(broker: Broker, queue: WorkerQueue, redis: Redis):
    job = await broker.submit(make_build_job("new", make_spec()))
    events = broker.iter_events(job.job_id)
    assert (await anext(events))[1].state == "queued"
    step_clock(redis, -HOUR_S)
    claim = queue.take_job()
    assert claim is not None
    queue.publish_progress(claim, Progress(stage="gradients"))
    queue.finish(claim, "succeeded")
    assert [record.state async for _, record in events][-1] == "succeeded"


@pytest.mark.parametrize(
    "last_id", [FUTURE_ID, "18446744073709551615-18446744073709551615"], ids=["an hour ahead", "largest"]
)
async def test_events_start_over_for_an_id_of_the_future(broker: Broker, queue: WorkerQueue, last_id: str):
    job = await broker.submit(make_build_job("new", make_spec()))
    _, record = await asyncio.wait_for(anext(broker.iter_events(job.job_id, last_id)), 2)
    assert record.state == "queued"
    claim = queue.take_job()
    assert claim is not None
    queue.finish(claim, "succeeded")
    states = [record.state async for _, record in broker.iter_events(job.job_id, last_id)]
    assert states == ["queued", "running", "succeeded"]


async def test_a_dead_worker_does_not_live_longer_after_a_step_back(
    broker: Broker, queue: WorkerQueue, redis: Redis
):
    queue.send_heartbeat(HEARTBEAT)
    step_clock(redis, -HOUR_S)
    with pytest.raises(NoWorker):
        await broker.ask(make_query(), "r", 5)
    queue.send_heartbeat(HEARTBEAT)
    assert await broker.list_workers() == [HEARTBEAT]


async def test_a_key_is_not_locked_out_after_a_step_back(broker: Broker, redis: Redis):
    limits = RateLimiter(redis_storage(broker.pool))
    caller = Caller(id="0" * 12, name="ada", rate="2/minute")
    for _ in range(2):
        await limits.start_call(caller)
    with pytest.raises(RateLimited):
        await limits.start_call(caller)
    step_clock(redis, -HOUR_S)
    for _ in range(2):
        await limits.start_call(caller)
    with pytest.raises(RateLimited) as refused:
        await limits.start_call(caller)
    assert refused.value.wait_s <= 120


@pytest.mark.parametrize("step_s", [-HOUR_S, HOUR_S])
async def test_ages_and_limits_of_waiting_queries_hold_after_a_step(
    broker: Broker, queue: WorkerQueue, redis: Redis, step_s: int
):
    queue.send_heartbeat(HEARTBEAT)
    send_query(redis, timeout_s=2 * HOUR_S)
    step_clock(redis, step_s)
    assert (await broker.read_load()).oldest_query_age_s >= 0
    queue.queries.take()
    send_query(redis, "q-2")
    assert not redis.exists(redis_keys.waiting_keys("batch")[0])
