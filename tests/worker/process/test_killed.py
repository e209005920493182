"""Workers as processes that are killed or stopped, over a fake core and a real Redis."""

import signal
from collections.abc import Callable

import pytest
from redis import Redis

from tests.worker.fakes import make_query, publish_index
from tests.worker.fixtures import WorkerProcess
from tests.worker.helpers import on_one_redis, read_record, read_replies, send_query, submit_job, wait_until
from worker.settings import Settings

Spawn = Callable[..., WorkerProcess]


def test_the_job_of_a_killed_worker_is_done_by_the_next(redis: Redis, spawn_worker: Spawn):
    submit_job(redis, index="new")
    first = spawn_worker(FAKE_TOTAL="10000", FAKE_BATCH_S="0.01")
    wait_until(lambda: read_record(redis).progress.done > 1)
    first.kill()
    spawn_worker()
    record = wait_until(lambda: (current := read_record(redis)).finished_at and current)
    assert (record.state, record.deliveries, record.error) == ("succeeded", 2, None)


@on_one_redis
def test_a_job_that_kills_three_workers_is_given_up(redis: Redis, spawn_worker: Spawn):
    submit_job(redis, index="new")
    workers = [spawn_worker(FAKE_EXIT="1") for _ in range(3)]
    for worker in workers:
        assert worker.wait() == 9
    spawn_worker()
    wait_until(lambda: read_record(redis).state == "failed")
    assert read_record(redis).deliveries == 3


def test_a_query_that_kills_two_workers_is_refused_by_the_third(
    redis: Redis, settings: Settings, spawn_worker: Spawn
):
    publish_index(settings.indexes_dir / "facts")
    send_query(redis, query=make_query("exit"))
    workers = [spawn_worker() for _ in range(3)]
    (reply,) = wait_until(lambda: read_replies(redis))
    assert reply.problem is not None
    assert sorted(str(worker.poll()) for worker in workers) == ["9", "9", "None"]


@on_one_redis
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_makes_the_worker_hand_its_build_back_and_exit_with_0(
    redis: Redis, spawn_worker: Spawn, number: signal.Signals
):
    submit_job(redis, index="new")
    worker = spawn_worker(FAKE_TOTAL="10000", FAKE_BATCH_S="0.01")
    wait_until(lambda: read_record(redis).progress.done > 1)
    worker.send_signal(number)
    assert worker.wait() == 0
    record = read_record(redis)
    assert (record.state, record.deliveries) == ("queued", 0)


@on_one_redis
def test_a_worker_without_a_configured_redis_starts_its_own(settings: Settings, spawn_worker: Spawn):
    worker = spawn_worker(REDIS_URL="")
    wait_until(lambda: worker.log.exists() and "is ready" in worker.log.read_text())
    assert list((settings.data_dir / "redis").glob("appendonly*"))  # a directory from Redis 7 on
    worker.send_signal(signal.SIGTERM)
    assert worker.wait() == 0
