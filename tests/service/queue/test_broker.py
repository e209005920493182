"""The broker against a real Redis. Workers, where a test needs one, are threads over a fake core."""

import asyncio
import os
import signal
import time
from collections.abc import AsyncIterator, Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any, cast
from uuid import uuid4

import pytest
from redis import Redis

from bergson_core.errors import (
    BergsonError,
    DeadlineExceeded,
    IndexBusy,
    IndexExists,
    IndexNotFound,
    InvalidInput,
    JobNotFound,
    NoWorker,
    QueueFull,
    RedisUnavailable,
    TooLong,
)
from bergson_core.schemas.presets import PRESETS
from bergson_core.schemas.results import Progress
from service.openapi import examples
from service.queue.broker import Broker
from service.queue.queue_load import QueueLoad
from service.queue.redis_calls import cancel_and_wait
from tests.worker.fakes import FakeCore, make_query, make_spec, publish_index
from tests.worker.helpers import (
    count_waiting,
    is_answering,
    make_build_job,
    read_pid,
    remaining_query_keys,
    send_query,
    wait_until,
    wait_until_async,
)
from worker.messages import CompactJob, EstimateJob, Heartbeat, JobRecord, Query, Reply
from worker.process.runner import Runner
from worker.queue import redis_keys
from worker.queue.embedded_redis import embedded_redis
from worker.queue.job_queue import WorkerQueue
from worker.queue.redis_client import connect
from worker.settings import Settings

HEARTBEAT = Heartbeat(worker_id="w-1", pid=1, host="h", device="cpu", started_at=0, state="idle")
Start = Callable[[], Runner]


@pytest.fixture
def settings(settings: Settings) -> Settings:
    """The settings, with which no worker loses what it has taken, nor counts as gone, if the machine is busy."""
    return settings.model_copy(update={"lease_s": 30, "query_lease_s": 30, "heartbeat_s": 1})


@pytest.fixture
def worker(settings: Settings, start_worker: Start) -> Runner:
    """A worker that has started, and the index `facts`."""
    publish_index(settings.indexes_dir / "facts")
    return start_worker()


@pytest.fixture
async def live_worker(broker: Broker, worker: Runner) -> None:
    await wait_until_async(broker.list_workers)


async def take_query(queue: WorkerQueue) -> Query:
    (query,) = await asyncio.to_thread(wait_until, queue.queries.take)
    return query


async def ask(broker: Broker, prompt: str = "Ada was born in", index: str = "facts", timeout_s: float = 20):
    return await broker.ask(make_query(prompt, index), "r", timeout_s)


async def follow(broker: Broker, job_id: str, last_id: str = "0") -> list[tuple[str, JobRecord]]:
    return [event async for event in broker.iter_events(job_id, last_id)]


# Queries


async def test_an_answer_arrives(broker: Broker, live_worker: None):
    answer = await ask(broker)
    assert answer.query.prompt == "Ada was born in"
    assert answer.timing_ms.queue >= 0


async def test_queries_of_several_requests_are_answered_together(
    broker: Broker,
    redis: Redis,
    queue: WorkerQueue,
    core: FakeCore,
    settings: Settings,
    start_worker: Start,
):
    publish_index(settings.indexes_dir / "facts")
    queue.send_heartbeat(HEARTBEAT)
    tasks = [asyncio.create_task(ask(broker, f"prompt {number}")) for number in range(8)]
    await asyncio.to_thread(wait_until, lambda: count_waiting(redis) == 8)
    start_worker()
    answers = await asyncio.gather(*tasks)
    assert [answer.query.prompt for answer in answers] == [f"prompt {number}" for number in range(8)]
    assert [len(batch) for batch in core.batches] == [4, 4]


async def test_an_error_of_the_worker_is_raised_by_the_broker(broker: Broker, live_worker: None):
    with pytest.raises(TooLong, match="99 tokens"):
        await ask(broker, "long text")
    with pytest.raises(IndexNotFound):
        await ask(broker, index="absent")
    with pytest.raises(BergsonError, match="unexpected RuntimeError"):
        await ask(broker, "crash")


async def test_an_index_that_is_being_built_is_busy(broker: Broker, core: FakeCore, live_worker: None):
    core.total, core.batch_s = 10_000, 0.01
    job = await broker.submit(make_build_job("new", make_spec(), "r"))
    with pytest.raises(IndexBusy, match=job.job_id):
        await ask(broker, index="new")
    await broker.cancel(job.job_id)


async def test_without_a_worker_no_query_is_queued(broker: Broker, redis: Redis):
    with pytest.raises(NoWorker, match="bergson worker"):
        await ask(broker)
    assert count_waiting(redis) == 0


async def test_too_many_queries_are_refused(
    broker: Broker, queue: WorkerQueue, redis: Redis, settings: Settings
):
    queue.send_heartbeat(HEARTBEAT)
    tasks = [asyncio.create_task(ask(broker)) for _ in range(settings.max_queued_queries)]
    await asyncio.to_thread(wait_until, lambda: count_waiting(redis) == settings.max_queued_queries)
    with pytest.raises(QueueFull, match="8 queries wait"):
        await ask(broker)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def test_queries_are_refused_when_one_has_waited_too_long(
    broker: Broker, queue: WorkerQueue, redis: Redis, settings: Settings
):
    queue.send_heartbeat(HEARTBEAT)
    send_query(redis, "old")
    _, arrivals, _ = redis_keys.waiting_keys("interactive")
    redis.zadd(arrivals, {"old": 1000 * (time.time() - settings.max_queue_wait_s - 1)})
    with pytest.raises(QueueFull, match="waited for 10 s"):
        await ask(broker)
    redis.zadd(arrivals, {"old": 1000 * (time.time() - settings.max_queue_wait_s + 5)})
    with pytest.raises(DeadlineExceeded):
        await ask(broker, timeout_s=0.01)


async def test_a_query_that_is_not_answered_in_time_is_withdrawn(
    broker: Broker, queue: WorkerQueue, redis: Redis
):
    queue.send_heartbeat(HEARTBEAT)
    with pytest.raises(DeadlineExceeded, match=r"0\.05 s"):
        await ask(broker, timeout_s=0.05)
    assert broker._replies._futures == {}
    assert remaining_query_keys(redis) == []


async def test_a_query_that_nobody_waits_for_any_more_is_withdrawn(
    broker: Broker, queue: WorkerQueue, redis: Redis
):
    queue.send_heartbeat(HEARTBEAT)
    task = asyncio.create_task(ask(broker))
    await asyncio.to_thread(wait_until, lambda: count_waiting(redis) == 1)
    await cancel_and_wait(task)
    assert task.cancelled()
    assert remaining_query_keys(redis) == []


async def test_a_query_that_a_worker_has_taken_stays_with_the_worker(
    broker: Broker, queue: WorkerQueue, redis: Redis
):
    queue.send_heartbeat(HEARTBEAT)
    task = asyncio.create_task(ask(broker, timeout_s=0.5))
    query = await take_query(queue)
    with pytest.raises(DeadlineExceeded):
        await task
    assert remaining_query_keys(redis) != []
    assert not queue.queries.is_awaited(query), "the worker begins no long step for it"
    queue.queries.send_replies([(query, Reply(query_id=query.query_id))])


async def test_a_reply_that_cannot_be_read_is_an_error(broker: Broker, queue: WorkerQueue, redis: Redis):
    queue.send_heartbeat(HEARTBEAT)
    task = asyncio.create_task(ask(broker))
    query = await take_query(queue)
    redis.xadd(query.reply_to, {"reply": f'{{"schema_version": 99, "query_id": "{query.query_id}"}}'})
    with pytest.raises(BergsonError, match="cannot be read"):
        await task


async def test_replies_are_deleted_once_they_are_read(broker: Broker, live_worker: None, redis: Redis):
    for _ in range(3):
        await ask(broker)
    await asyncio.to_thread(wait_until, lambda: redis.xlen(broker._replies.stream) == 0)


async def test_callers_get_an_error_when_the_reading_task_has_died(
    broker: Broker, queue: WorkerQueue, monkeypatch: pytest.MonkeyPatch
):
    def bug(raw: str) -> None:
        raise TypeError("a bug")

    monkeypatch.setattr(broker._replies, "_deliver", bug)
    queue.send_heartbeat(HEARTBEAT)
    task = asyncio.create_task(ask(broker))
    query = await take_query(queue)
    queue.queries.send_replies([(query, Reply(query_id=query.query_id))])
    for attempt in (task, ask(broker)):
        with pytest.raises(RedisUnavailable, match="has ended"):
            await attempt


# Jobs


async def test_a_submitted_job_is_queued_and_can_be_read(broker: Broker):
    job = await broker.submit(make_build_job("new", make_spec(), "r"))
    assert (job.state, job.index) == ("queued", "new")
    assert await broker.read_job(job.job_id) == job
    assert await broker.active_jobs() == {"new": job.job_id}


async def test_the_name_of_an_index_can_be_used_once(broker: Broker, settings: Settings):
    job = await broker.submit(make_build_job("new", make_spec(), "r"))
    with pytest.raises(IndexExists, match=job.job_id):
        await broker.submit(make_build_job("new", make_spec(model="other"), "r"))
    publish_index(settings.indexes_dir / "facts")
    with pytest.raises(IndexExists, match="it is published"):
        await broker.submit(make_build_job("facts", make_spec(), "r"))


async def test_one_job_at_a_time_changes_an_index(broker: Broker):
    def change() -> CompactJob:
        return CompactJob(job_id=uuid4().hex, index="facts", request_id="r")

    job = await broker.submit(change())
    assert (job.kind, job.state) == ("compact", "queued")
    with pytest.raises(IndexBusy, match=f"job {job.job_id} is at work on 'facts'"):
        await broker.submit(change())
    with pytest.raises(IndexExists, match=r"published|building"):
        await broker.submit(make_build_job("facts", make_spec()))
    await broker.cancel(job.job_id)
    assert (await broker.submit(change())).state == "queued"


def make_estimate_job(model: str = "tiny") -> EstimateJob:
    return EstimateJob(job_id=uuid4().hex, request_id="r", spec=make_spec(model=model))


async def test_a_worker_makes_an_estimate_which_reserves_no_name(
    broker: Broker, core: FakeCore, start_worker: Start
):
    start_worker()
    await wait_until_async(broker.list_workers)
    estimate = await broker.estimate(make_estimate_job(), 20)
    assert estimate.model_dump() == examples.ESTIMATE
    (job,), _ = await broker.list_jobs()
    assert (job.kind, job.index, job.state) == ("estimate", None, "succeeded")
    assert await broker.active_jobs() == {}


async def test_an_estimate_that_nobody_waits_for_is_cancelled(
    broker: Broker, core: FakeCore, start_worker: Start
):
    core.batch_s = 0.2
    core.total = 1000
    start_worker()
    await wait_until_async(broker.list_workers)
    with pytest.raises(DeadlineExceeded, match=r"no estimate within 0\.5 s"):
        await broker.estimate(make_estimate_job(), 0.5)

    async def is_cancelled() -> bool:
        return (await broker.list_jobs())[0][0].state == "cancelled"

    await wait_until_async(is_cancelled)


async def test_the_error_of_an_estimate_is_raised_by_the_broker(
    broker: Broker, core: FakeCore, start_worker: Start
):
    start_worker()
    await wait_until_async(broker.list_workers)
    with pytest.raises(InvalidInput, match="model: expected"):
        await broker.estimate(make_estimate_job("/etc"), 20)


async def test_without_a_worker_there_is_no_estimate(broker: Broker):
    with pytest.raises(NoWorker):
        await broker.estimate(make_estimate_job(), 20)


async def test_only_one_of_several_simultaneous_submits_gets_the_name(broker: Broker):
    outcomes = await asyncio.gather(
        *(broker.submit(make_build_job("new", make_spec(), "r")) for _ in range(8)), return_exceptions=True
    )
    assert sorted(type(outcome).__name__ for outcome in outcomes) == ["IndexExists"] * 7 + ["JobRecord"]


async def test_a_name_is_free_again_when_its_job_was_cancelled(broker: Broker):
    job = await broker.submit(make_build_job("new", make_spec(), "r"))
    await broker.cancel(job.job_id)
    assert await broker.active_jobs() == {}
    await broker.submit(make_build_job("new", make_spec(), "r"))


async def test_the_same_idempotency_key_and_body_give_the_same_job(broker: Broker, settings: Settings):
    job = await broker.submit(make_build_job("new", make_spec(), "r-1"), "key")
    assert await broker.submit(make_build_job("new", make_spec(), "r-2"), "key") == job
    await broker.cancel(job.job_id)
    publish_index(settings.indexes_dir / "new")
    assert (await broker.submit(make_build_job("new", make_spec(), "r-3"), "key")).job_id == job.job_id


async def test_a_preset_and_its_values_are_the_same_body(broker: Broker):
    values = make_spec(**PRESETS["best"].values)
    job = await broker.submit(make_build_job("new", make_spec(preset="best"), "r-1"), "key")
    assert await broker.submit(make_build_job("new", values, "r-2"), "key") == job
    with pytest.raises(InvalidInput, match="idempotency key"):
        await broker.submit(make_build_job("new", make_spec(preset="trackstar"), "r"), "key")


async def test_an_idempotency_key_with_another_body_is_refused(broker: Broker):
    await broker.submit(make_build_job("new", make_spec(), "r"), "key")
    for index, body in (("new", make_spec(model="other")), ("another", make_spec())):
        with pytest.raises(InvalidInput, match="idempotency key"):
            await broker.submit(make_build_job(index, body, "r"), "key")


async def test_a_refused_submit_does_not_use_up_its_key(broker: Broker):
    job = await broker.submit(make_build_job("new", make_spec(), "r"))
    with pytest.raises(IndexExists):
        await broker.submit(make_build_job("new", make_spec(), "r"), "key")
    await broker.cancel(job.job_id)
    assert (await broker.submit(make_build_job("new", make_spec(), "r"), "key")).state == "queued"


async def test_a_queued_job_is_cancelled_at_once_and_never_starts(broker: Broker, queue: WorkerQueue):
    job = await broker.submit(make_build_job("new", make_spec(), "r"))
    assert (await broker.cancel(job.job_id)).state == "cancelled"
    assert queue.take_job() is None
    assert (await broker.cancel(job.job_id)).state == "cancelled"


async def test_cancelled_jobs_do_not_delay_the_other_jobs_of_their_lane(broker: Broker, queue: WorkerQueue):
    async def submit(name: str, lane: str) -> str:
        return (await broker.submit(make_build_job(name, make_spec()), lane=lane)).job_id

    cancelled = [await submit(f"a-{number}", "ada") for number in range(4)]
    bobs_jobs = [await submit(f"b-{number}", "bob") for number in range(3)]
    for job_id in cancelled:
        await broker.cancel(job_id)
    adas_job = await submit("a-4", "ada")
    taken = [claim.job.job_id for claim in iter(queue.take_job, None)]
    assert taken == [bobs_jobs[0], adas_job, *bobs_jobs[1:]]


async def test_the_worker_of_a_cancelled_job_is_asked_to_stop(broker: Broker, queue: WorkerQueue):
    job = await broker.submit(make_build_job("new", make_spec(), "r"))
    claim = queue.take_job()
    assert claim is not None
    assert (await broker.cancel(job.job_id)).state == "running"
    queue.publish_progress(claim, Progress(stage="gradients"))
    assert claim.cancelled


async def test_unknown_jobs_are_not_found(broker: Broker):
    for attempt in (broker.read_job("x"), broker.cancel("x"), follow(broker, "x")):
        with pytest.raises(JobNotFound, match="'x'"):
            await attempt


async def test_jobs_are_listed_newest_first_in_pages(broker: Broker):
    job_ids = [
        (await broker.submit(make_build_job(f"i-{number}", make_spec(), "r"))).job_id for number in range(5)
    ]
    first, cursor = await broker.list_jobs(limit=2)
    assert cursor is not None
    await broker.submit(make_build_job("later", make_spec(), "r"))
    second, cursor = await broker.list_jobs(cursor=cursor, limit=2)
    third, end = await broker.list_jobs(cursor=cursor, limit=2)
    assert [job.job_id for job in first + second + third] == job_ids[::-1]
    assert end is None
    with pytest.raises(InvalidInput, match="cursor"):
        await broker.list_jobs(cursor="x")


async def test_jobs_are_listed_by_state(broker: Broker):
    for number in range(4):
        job = await broker.submit(make_build_job(f"i-{number}", make_spec(), "r"))
        if number % 2:
            await broker.cancel(job.job_id)
    queued, cursor = await broker.list_jobs("queued", limit=1)
    assert cursor is not None
    more, end = await broker.list_jobs("queued", cursor, limit=1)
    assert [job.index for job in queued + more] == ["i-2", "i-0"]
    assert end is None


async def test_expired_jobs_are_removed_from_the_list(broker: Broker, redis: Redis):
    job = await broker.submit(make_build_job("new", make_spec(), "r"))
    redis.delete(redis_keys.job_key(job.job_id))
    assert await broker.list_jobs() == ([], None)
    assert redis.zcard(redis_keys.JOBS_BY_CREATION) == 0


# Events


async def test_events_cover_the_whole_job_and_end_with_it(
    broker: Broker, core: FakeCore, start_worker: Start
):
    core.batch_s = 0.3
    job = await broker.submit(make_build_job("new", make_spec(), "r"))
    start_worker()
    events = await follow(broker, job.job_id)
    assert [record.state for _, record in events][:2] == ["queued", "running"]
    assert events[-1][1].state == "succeeded"
    assert len(events) >= 5
    assert events[-1][1].progress.stage == "done"


async def test_events_resume_after_the_last_one_that_was_received(
    broker: Broker, core: FakeCore, start_worker: Start
):
    job = await broker.submit(make_build_job("new", make_spec(), "r"))
    start_worker()
    events = await follow(broker, job.job_id)
    assert await follow(broker, job.job_id, events[0][0]) == events[1:]
    assert await follow(broker, job.job_id, events[-1][0]) == []


async def test_events_arrive_as_they_happen(broker: Broker, queue: WorkerQueue):
    job = await broker.submit(make_build_job("new", make_spec(), "r"))
    events = broker.iter_events(job.job_id)
    assert (await anext(events))[1].state == "queued"
    next_event = asyncio.create_task(anext(cast("Any", events)))
    await asyncio.sleep(0.05)
    claim = queue.take_job()
    assert claim is not None
    assert (await next_event)[1].state == "running"
    queue.finish(claim, "cancelled")
    assert [record.state async for _, record in events] == ["cancelled"]


async def test_followers_are_no_more_than_the_connections_on_which_they_wait(broker: Broker):
    with ExitStack() as stack:
        for _ in range(256):
            stack.enter_context(broker.count_follower())
        with pytest.raises(QueueFull, match="256 event streams"), broker.count_follower():
            pass
    with broker.count_follower():
        pass


@pytest.mark.parametrize("last_id", ["x", "1-x", "-", "", "99999999999999999999", "1-2-3"])
async def test_a_malformed_event_id_is_refused(broker: Broker, last_id: str):
    job = await broker.submit(make_build_job("new", make_spec(), "r"))
    with pytest.raises(InvalidInput, match="event id"):
        await follow(broker, job.job_id, last_id)


# Workers and Redis itself


async def test_live_workers_are_listed_and_dead_ones_are_removed(
    broker: Broker, queue: WorkerQueue, redis: Redis
):
    queue.send_heartbeat(HEARTBEAT)
    assert await broker.list_workers() == [HEARTBEAT]
    redis.delete(redis_keys.worker_key("w-1"))
    assert await broker.list_workers() == []
    assert not redis.exists(redis_keys.WORKERS)


async def load_with_older_query(broker: Broker, age_s: float) -> QueueLoad | None:
    load = await broker.read_load()
    return load if load.oldest_query_age_s > age_s else None


async def test_an_empty_redis_has_no_load(broker: Broker):
    assert await broker.read_load() == QueueLoad(
        queries=0, oldest_query_age_s=0, jobs_queued=0, jobs_running=0, workers=[]
    )


async def test_the_load_counts_waiting_and_running_work_and_the_workers(
    broker: Broker, queue: WorkerQueue, redis: Redis
):
    for name in ("one", "two", "three"):
        await broker.submit(make_build_job(name, make_spec()), lane=name)
    queue.take_job()
    queue.send_heartbeat(HEARTBEAT)
    send_query(redis, "q-1")
    queue.queries.take()
    send_query(redis, "q-2")
    first = await broker.read_load()
    assert (first.queries, first.jobs_queued, first.jobs_running, first.workers) == (2, 2, 1, [HEARTBEAT])
    # The age is that of q-2, because a worker has taken q-1.
    later = await wait_until_async(lambda: load_with_older_query(broker, first.oldest_query_age_s + 0.01))
    assert later.queries == 2


@pytest.fixture
async def broker_without_redis(tmp_path: Path) -> AsyncIterator[Broker]:
    """A broker whose Redis does not run."""
    settings = Settings(data_dir=tmp_path, redis_url=f"unix://{tmp_path}/none.sock")
    async with Broker.connect(settings) as broker:
        yield broker


async def test_every_method_reports_that_redis_does_not_answer(broker_without_redis: Broker):
    for attempt in (
        broker_without_redis.ping(),
        broker_without_redis.list_workers(),
        broker_without_redis.read_load(),
        broker_without_redis.active_jobs(),
        broker_without_redis.read_job("x"),
        broker_without_redis.list_jobs(),
        broker_without_redis.cancel("x"),
        broker_without_redis.submit(make_build_job("new", make_spec(), "r")),
        ask(broker_without_redis),
        follow(broker_without_redis, "x"),
    ):
        with pytest.raises(RedisUnavailable, match="REDIS_URL"):
            await attempt


async def test_answers_and_jobs_survive_a_restart_of_redis(tmp_path: Path, core: FakeCore):
    settings = Settings(data_dir=tmp_path, redis_url=None, poll_s=0.02)
    publish_index(settings.indexes_dir / "facts")
    async with Broker.connect(settings) as broker:
        with embedded_redis(tmp_path / "redis") as url:
            runner = Runner(WorkerQueue(connect(url), settings, "w-1"), settings, "fake")
            worker = asyncio.create_task(asyncio.to_thread(runner.run))
            try:
                await wait_until_async(broker.list_workers)
                await ask(broker)
                job = await broker.submit(make_build_job("facts-2", make_spec(), "r"))
                await asyncio.to_thread(kill_redis, url)
                await ask(broker)
                assert (await follow(broker, job.job_id))[-1][1].state == "succeeded"
            finally:
                runner.stop()
                await worker


def kill_redis(url: str) -> None:
    """Kills the Redis server, and waits for the one that replaces it."""
    pid = read_pid(url)
    os.kill(pid, signal.SIGKILL)
    wait_until(lambda: is_answering(url) and read_pid(url) != pid)
