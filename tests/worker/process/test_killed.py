"""Workers as processes that are killed or stopped, over a fake core and a real Redis."""

import signal
import subprocess
from collections.abc import Callable

import pytest
from redis import Redis

from tests.worker.fakes import publish, question
from tests.worker.helpers import record_of, replies, send, submit, until
from worker.settings import Settings

Spawn = Callable[..., subprocess.Popen[str]]


def test_the_job_of_a_killed_worker_is_done_by_the_next(redis: Redis, spawn_worker: Spawn):
    submit(redis, index="new")
    first = spawn_worker(FAKE_TOTAL="10000", FAKE_BATCH_S="0.01")
    until(lambda: record_of(redis).progress.done > 1)
    first.kill()
    spawn_worker()
    record = until(lambda: (one := record_of(redis)).finished_at and one)
    assert (record.state, record.deliveries, record.error) == ("succeeded", 2, None)


def test_a_job_that_kills_three_workers_is_given_up(redis: Redis, spawn_worker: Spawn):
    submit(redis, index="new")
    workers = [spawn_worker(FAKE_EXIT="1") for _ in range(3)]
    for worker in workers:
        assert worker.wait(30) == 9
    spawn_worker()
    until(lambda: record_of(redis).state == "failed")
    assert record_of(redis).deliveries == 3


def test_a_query_that_kills_two_workers_is_refused_by_the_third(
    redis: Redis, settings: Settings, spawn_worker: Spawn
):
    publish(settings.indexes_dir / "facts")
    send(redis, query=question("exit"))
    workers = [spawn_worker() for _ in range(3)]
    (reply,) = until(lambda: replies(redis))
    assert reply.problem is not None
    assert sorted(str(worker.poll()) for worker in workers) == ["9", "9", "None"]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_hands_the_build_back_and_ends_the_worker_cleanly(
    redis: Redis, spawn_worker: Spawn, number: signal.Signals
):
    submit(redis, index="new")
    worker = spawn_worker(FAKE_TOTAL="10000", FAKE_BATCH_S="0.01")
    until(lambda: record_of(redis).progress.done > 1)
    worker.send_signal(number)
    assert worker.wait(30) == 0
    record = record_of(redis)
    assert (record.state, record.deliveries) == ("queued", 0)


def test_a_worker_without_a_configured_redis_brings_its_own(settings: Settings, spawn_worker: Spawn):
    worker = spawn_worker(REDIS_URL="")
    assert worker.stderr is not None
    assert any("is ready" in line for line in worker.stderr)
    assert (settings.data_dir / "redis" / "appendonly.aof").exists()
    worker.terminate()
    assert worker.wait(30) == 0
