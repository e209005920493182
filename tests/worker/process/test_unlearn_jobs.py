"""A preview of unlearning is a job that changes nothing: it waits for no index, and leaves nothing behind."""

from collections.abc import Callable
from typing import Any

import pytest
from redis import Redis

from bergson_core.storage.index_lock import lock_index
from service.openapi import examples
from service.queue.broker import Broker
from tests.worker.fakes import FakeCore, publish_index
from tests.worker.helpers import (
    problem_code,
    read_record,
    read_replies,
    send_query,
    submit_job,
    wait_for_replies,
    wait_until,
)
from worker.messages import JOB_ADAPTER, Job, JobRecord
from worker.process.runner import Runner
from worker.queue import redis_keys as keys
from worker.settings import Settings

ONE_REDIS = True

Start = Callable[[], Runner]


def make_job(job_id: str = "j-1", index: str = "facts") -> Job:
    fields = {"kind": "unlearn", "job_id": job_id, "index": index, "request_id": "r"}
    return JOB_ADAPTER.validate_python(fields | {"spec": examples.UNLEARN_IDS})


@pytest.fixture(autouse=True)
def facts(settings: Settings) -> None:
    publish_index(settings.indexes_dir / "facts")


def wait_for_end(redis: Redis, job_id: str = "j-1") -> JobRecord:
    return wait_until(lambda: (record := read_record(redis, job_id)).finished_at and record)


def test_the_record_of_the_job_has_the_preview_and_the_worker_has_the_bound_of_the_settings(
    redis: Redis, core: FakeCore, settings: Settings, start_worker: Start
):
    submit_job(redis, job=make_job())
    start_worker()
    record = wait_for_end(redis)
    assert (record.kind, record.state) == ("unlearn", "succeeded")
    assert record.unlearning is not None
    assert record.unlearning.model_dump() == examples.JOB_UNLEARNED["unlearning"]
    ((index, spec, max_documents),) = core.previews
    assert (index, spec.ids, max_documents) == (
        "facts",
        tuple(examples.UNLEARN_IDS["ids"]),
        settings.max_unlearned_documents,
    )


def test_it_runs_on_the_index_that_queries_use_and_answers_them_between_its_steps(
    redis: Redis, core: FakeCore, start_worker: Start
):
    core.total = 1000
    core.during = lambda number: send_query(redis) if number == 3 else None
    core.during_query = lambda: setattr(core, "total", 0)
    core.batch_s = 0.005
    submit_job(redis, job=make_job())
    start_worker()
    assert wait_for_replies(redis)["q-1"].answer is not None
    assert read_record(redis).state == "running"
    assert core.opened == ["facts"]


def test_it_neither_waits_for_a_writer_of_the_index_nor_removes_what_that_has_not_published(
    redis: Redis, core: FakeCore, settings: Settings, start_worker: Start
):
    directory = settings.indexes_dir / "facts"
    half = directory / "shards" / "00007" / "rows.arrow"
    half.parent.mkdir(parents=True)
    half.write_text("half")
    core.during = lambda number: redis.hset(keys.job_key("j-1"), "cancel", "1")
    core.total, core.batch_s = 100_000, 0.01
    with lock_index(directory):
        submit_job(redis, job=make_job())
        start_worker()
        assert wait_for_end(redis).state == "cancelled"
    submit_job(redis, "j-2", job=make_job("j-2", "facts"))
    core.during = _crash
    assert wait_for_end(redis, "j-2").state == "failed"
    assert half.read_text() == "half"


def _crash(number: int) -> None:
    raise RuntimeError("a bug")


async def test_it_reserves_no_index(broker: Broker, redis: Redis):
    await broker.submit(make_job())
    await broker.submit(make_job("j-2"))
    assert redis.hgetall(keys.BUILDING) == {}
    assert (await broker.read_job("j-2")).index == "facts"


def test_a_preview_of_a_missing_index_fails_with_the_code(redis: Redis, core: FakeCore, start_worker: Start):
    submit_job(redis, index="none", job=make_job(index="none"))
    start_worker()
    record = wait_for_end(redis)
    assert record.error is not None
    assert (record.state, record.error.code, record.unlearning) == ("failed", "index_not_found", None)


def test_the_preview_of_a_killed_worker_is_computed_by_the_next(redis: Redis, spawn_worker: Any):
    submit_job(redis, job=make_job())
    first = spawn_worker(FAKE_TOTAL="10000", FAKE_BATCH_S="0.01")
    wait_until(lambda: read_record(redis).progress.done > 1)
    first.kill()
    spawn_worker()
    record = wait_for_end(redis)
    assert (record.state, record.deliveries) == ("succeeded", 2)
    assert record.unlearning is not None
    assert [problem_code(reply) for reply in read_replies(redis)] == []
