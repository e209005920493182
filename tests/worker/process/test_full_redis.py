"""A worker whose Redis is full keeps what it has computed, and sends it once there is room."""

import logging
import time
from collections.abc import Callable, Iterator

import pytest
from redis import Redis

from tests.worker.fakes import FakeCore, make_query, publish_index
from tests.worker.helpers import read_record, send_query, submit_job, wait_for_replies, wait_until
from worker.process.runner import Runner
from worker.queue import redis_keys as keys
from worker.settings import Settings

Start = Callable[[], Runner]


@pytest.fixture(autouse=True)
def facts(settings: Settings) -> None:
    publish_index(settings.indexes_dir / "facts")


@pytest.fixture
def fill(redis: Redis) -> Iterator[Callable[[], None]]:
    """Makes Redis full when it is called; there is room again at the end of the test."""
    yield lambda: make_full(redis)
    make_room(redis)


def make_full(redis: Redis) -> None:
    redis.config_set("maxmemory", 1)


def make_room(redis: Redis) -> None:
    redis.config_set("maxmemory", 0)


def test_answers_are_sent_once_there_is_room_and_are_not_computed_again(
    redis: Redis,
    core: FakeCore,
    settings: Settings,
    start_worker: Start,
    fill: Callable[[], None],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
):
    publish_index(settings.indexes_dir / "poems")
    for number, index in enumerate(["facts", "poems", "facts"]):
        send_query(redis, f"q-{number}", query=make_query(index=index))
    core.during_query = fill
    with caplog.at_level(logging.WARNING):
        start_worker()
        wait_until(lambda: len(core.batches) == 2 and "Redis is full, trying again" in caplog.text)
        time.sleep(3 * settings.query_lease_s)
        make_room(redis)
        replies = wait_for_replies(redis, 3)
    assert all(reply.answer is not None for reply in replies.values())
    assert len(core.batches) == 2
    assert not redis.exists(keys.QUERY_LEASES)


def test_an_answer_that_nobody_waits_for_any_more_is_dropped(
    redis: Redis,
    core: FakeCore,
    start_worker: Start,
    fill: Callable[[], None],
    caplog: pytest.LogCaptureFixture,
):
    send_query(redis, timeout_s=1)
    core.during_query = fill
    start_worker()
    wait_until(
        lambda: "replies dropped, because the deadlines of their queries have passed: q-1" in caplog.text
    )
    core.during_query = lambda: None
    make_room(redis)
    send_query(redis, "q-2")
    assert list(wait_for_replies(redis)) == ["q-2"]


def test_a_build_goes_on_while_redis_is_full_for_longer_than_the_lease(
    redis: Redis, core: FakeCore, settings: Settings, start_worker: Start, fill: Callable[[], None]
):
    core.total, core.batch_s = 40, settings.lease_s / 10
    core.during = lambda number: fill() if number == 2 else None
    submit_job(redis, index="new")
    start_worker()
    wait_until(lambda: (settings.indexes_dir / "new" / "manifest.json").exists())
    make_room(redis)
    record = wait_until(lambda: (record := read_record(redis)).finished_at and record)
    assert (record.state, record.deliveries, len(core.builds)) == ("succeeded", 1, 1)


def test_jobs_end_in_a_full_redis_and_make_room(
    redis: Redis, core: FakeCore, start_worker: Start, fill: Callable[[], None]
):
    core.during = lambda number: fill()
    submit_job(redis, index="new")
    start_worker()
    record = wait_until(lambda: (record := read_record(redis)).finished_at and record)
    assert (record.state, record.deliveries) == ("succeeded", 1)
    assert not redis.hexists(keys.job_key("j-1"), "message")


def test_a_waiting_job_is_not_lost(
    redis: Redis,
    core: FakeCore,
    start_worker: Start,
    fill: Callable[[], None],
    caplog: pytest.LogCaptureFixture,
):
    submit_job(redis, index="new")
    fill()
    start_worker()
    wait_until(lambda: "Redis is full" in caplog.text)
    make_room(redis)
    record = wait_until(lambda: (record := read_record(redis)).finished_at and record)
    assert (record.state, record.deliveries) == ("succeeded", 1)
