"""The web process's side, against a real Redis; workers are threads over a fake core where one is needed."""

import asyncio
import os
import signal
import time
from collections.abc import AsyncIterator, Callable
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
from bergson_core.schemas.results import Progress
from service.openapi import examples
from service.queue.broker import Broker
from service.queue.queue_load import QueueLoad
from service.queue.replies import cancel_and_wait
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
from worker.queue import redis_keys as keys
from worker.queue.embedded_redis import embedded_redis
from worker.queue.job_queue import WorkerQueue
from worker.queue.redis_client import connect
from worker.settings import Settings

BEAT = Heartbeat(worker_id="w-1", pid=1, host="h", device="cpu", started_at=0, state="idle")
Start = Callable[[], Runner]


@pytest.fixture
def worker(settings: Settings, start_worker: Start) -> Runner:
    """A worker with the index `facts`, that can be seen to live."""
    publish_index(settings.indexes_dir / "facts")
    return start_worker()


@pytest.fixture
async def alive(broker: Broker, worker: Runner) -> None:
    await wait_until_async(broker.list_workers)


async def taken_query(queue: WorkerQueue) -> Query:
    (taken,) = await asyncio.to_thread(wait_until, queue.queries.take)
    return taken


async def ask(broker: Broker, prompt: str = "Ada was born in", index: str = "facts", timeout_s: float = 20):
    return await broker.ask(make_query(prompt, index), "r", timeout_s)


async def follow(broker: Broker, job_id: str, last_id: str = "0") -> list[tuple[str, JobRecord]]:
    return [event async for event in broker.iter_events(job_id, last_id)]


# Queries


async def test_an_answer_arrives(broker: Broker, alive: None):
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
    queue.send_heartbeat(BEAT)
    asked = [asyncio.create_task(ask(broker, f"prompt {number}")) for number in range(8)]
    await asyncio.to_thread(wait_until, lambda: count_waiting(redis) == 8)
    start_worker()
    answers = await asyncio.gather(*asked)
    assert [answer.query.prompt for answer in answers] == [f"prompt {number}" for number in range(8)]
    assert [len(batch) for batch in core.batches] == [4, 4]


async def test_the_workers_error_is_raised_here(broker: Broker, alive: None):
    with pytest.raises(TooLong, match="99 tokens"):
        await ask(broker, "long text")
    with pytest.raises(IndexNotFound):
        await ask(broker, index="absent")
    with pytest.raises(BergsonError, match="unexpected RuntimeError"):
        await ask(broker, "crash")


async def test_an_index_that_is_being_built_is_busy(broker: Broker, core: FakeCore, alive: None):
    core.total, core.batch_s = 10_000, 0.01
    job = await broker.submit(make_build_job("new", make_spec(), "r"))
    with pytest.raises(IndexBusy, match=job.job_id):
        await ask(broker, index="new")
    await broker.cancel(job.job_id)


async def test_without_a_worker_nothing_is_asked(broker: Broker, redis: Redis):
    with pytest.raises(NoWorker, match="python -m worker"):
        await ask(broker)
    assert count_waiting(redis) == 0


async def test_too_many_queries_are_refused(
    broker: Broker, queue: WorkerQueue, redis: Redis, settings: Settings
):
    queue.send_heartbeat(BEAT)
    asked = [asyncio.create_task(ask(broker)) for _ in range(settings.max_queued_queries)]
    await asyncio.to_thread(wait_until, lambda: count_waiting(redis) == settings.max_queued_queries)
    with pytest.raises(QueueFull, match="8 queries wait"):
        await ask(broker)
    for task in asked:
        task.cancel()
    await asyncio.gather(*asked, return_exceptions=True)


async def test_where_a_query_waits_too_long_already_more_are_refused(
    broker: Broker, queue: WorkerQueue, redis: Redis, settings: Settings
):
    queue.send_heartbeat(BEAT)
    send_query(redis, "old")
    waiting_keys = redis_keys.waiting_keys("interactive")
    redis.zadd(waiting_keys[1], {"old": 1000 * (time.time() - settings.max_queue_wait_s - 1)})
    with pytest.raises(QueueFull, match="waited for 10 s"):
        await ask(broker)
    redis.zadd(waiting_keys[1], {"old": 1000 * (time.time() - settings.max_queue_wait_s + 5)})
    with pytest.raises(DeadlineExceeded):
        await ask(broker, timeout_s=0.01)


async def test_an_answer_that_does_not_come_in_time_is_given_up_and_never_computed(
    broker: Broker, queue: WorkerQueue, redis: Redis
):
    queue.send_heartbeat(BEAT)
    with pytest.raises(DeadlineExceeded, match=r"0\.05 s"):
        await ask(broker, timeout_s=0.05)
    assert broker._replies._futures == {}
    assert remaining_query_keys(redis) == []


async def test_a_query_that_nobody_waits_for_any_more_is_withdrawn(
    broker: Broker, queue: WorkerQueue, redis: Redis
):
    queue.send_heartbeat(BEAT)
    asked = asyncio.create_task(ask(broker))
    await asyncio.to_thread(wait_until, lambda: count_waiting(redis) == 1)
    await cancel_and_wait(asked)
    assert asked.cancelled()
    assert remaining_query_keys(redis) == []


async def test_a_query_in_a_workers_hands_stays_there(broker: Broker, queue: WorkerQueue, redis: Redis):
    queue.send_heartbeat(BEAT)
    asked = asyncio.create_task(ask(broker, timeout_s=0.5))
    query = await taken_query(queue)
    with pytest.raises(DeadlineExceeded):
        await asked
    assert remaining_query_keys(redis) != []
    assert not queue.queries.is_awaited(query), "nothing long is begun for it"
    queue.queries.send_replies([(query, Reply(query_id=query.query_id))])


async def test_an_answer_that_cannot_be_read_is_an_error_and_not_a_silence(
    broker: Broker, queue: WorkerQueue, redis: Redis
):
    queue.send_heartbeat(BEAT)
    asked = asyncio.create_task(ask(broker))
    query = await taken_query(queue)
    redis.xadd(query.reply_to, {"reply": f'{{"schema_version": 99, "query_id": "{query.query_id}"}}'})
    with pytest.raises(BergsonError, match="cannot be read"):
        await asked


async def test_answers_are_deleted_once_read(broker: Broker, alive: None, redis: Redis):
    for _ in range(3):
        await ask(broker)
    await asyncio.to_thread(wait_until, lambda: redis.xlen(broker._replies.stream) == 0)


async def test_callers_get_an_error_when_the_reader_has_died(
    broker: Broker, queue: WorkerQueue, monkeypatch: pytest.MonkeyPatch
):
    def bug(raw: str) -> None:
        raise TypeError("a bug")

    monkeypatch.setattr(broker._replies, "_deliver", bug)
    queue.send_heartbeat(BEAT)
    asked = asyncio.create_task(ask(broker))
    taken = await taken_query(queue)
    queue.queries.send_replies([(taken, Reply(query_id=taken.query_id))])
    for attempt in (asked, ask(broker)):
        with pytest.raises(RedisUnavailable, match="has ended"):
            await attempt


# Jobs


async def test_a_submitted_job_is_queued_and_can_be_seen(broker: Broker):
    job = await broker.submit(make_build_job("new", make_spec(), "r"))
    assert (job.state, job.index) == ("queued", "new")
    assert await broker.read_job(job.job_id) == job
    assert await broker.active_jobs() == {"new": job.job_id}


async def test_a_name_can_be_taken_once(broker: Broker, settings: Settings):
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


def estimate_of(model: str = "tiny") -> EstimateJob:
    return EstimateJob(job_id=uuid4().hex, request_id="r", spec=make_spec(model=model))


async def test_an_estimate_is_found_by_a_worker_and_takes_no_name(
    broker: Broker, core: FakeCore, start_worker: Start
):
    start_worker()
    await wait_until_async(broker.list_workers)
    found = await broker.estimate(estimate_of(), 20)
    assert found.model_dump() == examples.ESTIMATE
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
        await broker.estimate(estimate_of(), 0.5)

    async def ended() -> bool:
        return (await broker.list_jobs())[0][0].state == "cancelled"

    await wait_until_async(ended)


async def test_the_error_of_an_estimate_is_raised_here(broker: Broker, core: FakeCore, start_worker: Start):
    start_worker()
    await wait_until_async(broker.list_workers)
    with pytest.raises(InvalidInput, match="model: expected"):
        await broker.estimate(estimate_of("/etc"), 20)


async def test_without_a_worker_there_is_no_estimate(broker: Broker):
    with pytest.raises(NoWorker):
        await broker.estimate(estimate_of(), 20)


async def test_of_submits_at_once_one_gets_the_name(broker: Broker):
    made = await asyncio.gather(
        *(broker.submit(make_build_job("new", make_spec(), "r")) for _ in range(8)), return_exceptions=True
    )
    assert sorted(type(one).__name__ for one in made) == ["IndexExists"] * 7 + ["JobRecord"]


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


async def test_who_cancels_jobs_waits_no_longer_for_them(broker: Broker, queue: WorkerQueue):
    async def ask_for(name: str, lane: str) -> str:
        return (await broker.submit(make_build_job(name, make_spec()), lane=lane)).job_id

    cancelled = [await ask_for(f"a-{number}", "ada") for number in range(4)]
    theirs = [await ask_for(f"b-{number}", "bob") for number in range(3)]
    for job_id in cancelled:
        await broker.cancel(job_id)
    mine = await ask_for("a-4", "ada")
    taken = [claim.job.job_id for claim in iter(queue.take_job, None)]
    assert taken == [theirs[0], mine, *theirs[1:]]


async def test_a_running_job_is_told_to_stop(broker: Broker, queue: WorkerQueue):
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
    made = [
        (await broker.submit(make_build_job(f"i-{number}", make_spec(), "r"))).job_id for number in range(5)
    ]
    first, cursor = await broker.list_jobs(limit=2)
    assert cursor is not None
    await broker.submit(make_build_job("later", make_spec(), "r"))
    second, cursor = await broker.list_jobs(cursor=cursor, limit=2)
    third, end = await broker.list_jobs(cursor=cursor, limit=2)
    assert [job.job_id for job in first + second + third] == made[::-1]
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


async def test_jobs_that_redis_has_forgotten_leave_the_list(broker: Broker, redis: Redis):
    job = await broker.submit(make_build_job("new", make_spec(), "r"))
    redis.delete(keys.job_key(job.job_id))
    assert await broker.list_jobs() == ([], None)
    assert redis.zcard(keys.JOBS_BY_CREATION) == 0


# Events


async def test_events_tell_the_whole_story_and_end(broker: Broker, core: FakeCore, start_worker: Start):
    core.batch_s = 0.3
    job = await broker.submit(make_build_job("new", make_spec(), "r"))
    start_worker()
    events = await follow(broker, job.job_id)
    assert [record.state for _, record in events][:2] == ["queued", "running"]
    assert events[-1][1].state == "succeeded"
    assert len(events) >= 5
    assert events[-1][1].progress.stage == "done"


async def test_events_resume_after_the_last_one_that_was_seen(
    broker: Broker, core: FakeCore, start_worker: Start
):
    job = await broker.submit(make_build_job("new", make_spec(), "r"))
    start_worker()
    events = await follow(broker, job.job_id)
    assert await follow(broker, job.job_id, events[0][0]) == events[1:]
    assert await follow(broker, job.job_id, events[-1][0]) == []


async def test_events_arrive_while_they_happen(broker: Broker, queue: WorkerQueue):
    job = await broker.submit(make_build_job("new", make_spec(), "r"))
    events = broker.iter_events(job.job_id)
    assert (await anext(events))[1].state == "queued"
    waiting = asyncio.create_task(anext(cast("Any", events)))
    await asyncio.sleep(0.05)
    claim = queue.take_job()
    assert claim is not None
    assert (await waiting)[1].state == "running"
    queue.finish(claim, "cancelled")
    assert [record.state async for _, record in events] == ["cancelled"]


@pytest.mark.parametrize("last_id", ["x", "1-x", "-", "", "99999999999999999999", "1-2-3"])
async def test_what_is_no_event_id_is_refused(broker: Broker, last_id: str):
    job = await broker.submit(make_build_job("new", make_spec(), "r"))
    with pytest.raises(InvalidInput, match="event id"):
        await follow(broker, job.job_id, last_id)


# Workers and Redis itself


async def test_live_workers_are_listed_and_dead_ones_forgotten(
    broker: Broker, queue: WorkerQueue, redis: Redis
):
    queue.send_heartbeat(BEAT)
    assert await broker.list_workers() == [BEAT]
    redis.delete(keys.worker_key("w-1"))
    assert await broker.list_workers() == []
    assert not redis.exists(keys.WORKERS)


async def older(broker: Broker, age_s: float) -> QueueLoad | None:
    load = await broker.read_load()
    return load if load.oldest_query_age_s > age_s else None


async def test_the_load_of_an_empty_redis_is_nothing(broker: Broker):
    assert await broker.read_load() == QueueLoad(
        queries=0, oldest_query_age_s=0, jobs_queued=0, jobs_running=0, workers=[]
    )


async def test_the_load_is_what_waits_what_is_worked_on_and_who_does_it(
    broker: Broker, queue: WorkerQueue, redis: Redis
):
    for name in ("one", "two", "three"):
        await broker.submit(make_build_job(name, make_spec()), lane=name)
    queue.take_job()
    queue.send_heartbeat(BEAT)
    send_query(redis, "q-1")
    queue.queries.take()
    send_query(redis, "q-2")
    first = await broker.read_load()
    assert (first.queries, first.jobs_queued, first.jobs_running, first.workers) == (2, 2, 1, [BEAT])
    # The age is that of the first, which is worked on.
    later = await wait_until_async(lambda: older(broker, first.oldest_query_age_s + 0.01))
    assert later.queries == 2


@pytest.fixture
async def lonely(tmp_path: Path) -> AsyncIterator[Broker]:
    """A broker whose Redis is not there."""
    settings = Settings(data_dir=tmp_path, redis_url=f"unix://{tmp_path}/none.sock")
    async with Broker.connect(settings) as broker:
        yield broker


async def test_without_redis_every_call_says_so(lonely: Broker):
    for attempt in (
        lonely.ping(),
        lonely.list_workers(),
        lonely.read_load(),
        lonely.active_jobs(),
        lonely.read_job("x"),
        lonely.list_jobs(),
        lonely.cancel("x"),
        lonely.submit(make_build_job("new", make_spec(), "r")),
        ask(lonely),
        follow(lonely, "x"),
    ):
        with pytest.raises(RedisUnavailable, match="REDIS_URL"):
            await attempt


async def test_answers_and_jobs_survive_a_restart_of_redis(tmp_path: Path, core: FakeCore):
    settings = Settings(data_dir=tmp_path, redis_url=None, poll_s=0.02)
    publish_index(settings.indexes_dir / "facts")
    async with Broker.connect(settings) as broker:
        with embedded_redis(tmp_path / "redis") as url:
            runner = Runner(WorkerQueue(connect(url), settings, "w-1"), settings, "fake")
            working = asyncio.create_task(asyncio.to_thread(runner.run))
            try:
                await wait_until_async(broker.list_workers)
                await ask(broker)
                job = await broker.submit(make_build_job("facts-2", make_spec(), "r"))
                await asyncio.to_thread(kill_redis, url)
                await ask(broker)
                assert (await follow(broker, job.job_id))[-1][1].state == "succeeded"
            finally:
                runner.stop()
                await working


def kill_redis(url: str) -> None:
    """Kills the server, and waits for the one that takes its place."""
    pid = read_pid(url)
    os.kill(pid, signal.SIGKILL)
    wait_until(lambda: is_answering(url) and read_pid(url) != pid)
