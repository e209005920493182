"""Workers as threads of this process, over a fake core and a real Redis; what kills a worker is in test_killed."""

import logging
import threading
from collections.abc import Callable
from typing import Any, cast

import pytest
from redis import Redis
from redis.exceptions import ConnectionError as RedisConnectionError

from bergson_core.errors import IndexBusy, ModelNotFound
from tests.worker.fakes import FakeCore, publish, question
from tests.worker.helpers import answered, let_lapse, problem_of, record_of, replies, send, submit, until
from worker.messages import Heartbeat, JobRecord
from worker.process.runner import Runner
from worker.queue import redis_keys as keys
from worker.queue.job_queue import WorkerQueue
from worker.queue.query_queue import QueryQueue
from worker.settings import Settings
from worker.telemetry.metrics import read_memory_bytes

logger = logging.getLogger(__name__)
Start = Callable[[], Runner]


@pytest.fixture(autouse=True)
def facts(settings: Settings) -> None:
    publish(settings.indexes_dir / "facts")


def ended(redis: Redis, job_id: str = "j-1") -> JobRecord:
    """The job once it has ended."""
    return until(lambda: (one := record_of(redis, job_id)).finished_at and one)


def test_a_query_is_answered_and_its_wait_is_told(redis: Redis, core: FakeCore, start_worker: Start):
    send(redis)
    start_worker()
    answer = answered(redis)["q-1"].answer
    assert answer is not None
    assert answer.timing_ms.queue > 0
    assert answer.timing_ms.total == pytest.approx(answer.timing_ms.queue + 3)


def test_waiting_queries_of_an_index_are_answered_in_one_batch(
    redis: Redis, core: FakeCore, settings: Settings, start_worker: Start
):
    publish(settings.indexes_dir / "poems")
    for number, index in enumerate(["facts", "poems", "facts"]):
        send(redis, f"q-{number}", query=question(f"prompt {number}", index))
    start_worker()
    answered(redis, 3)
    assert core.batches == [["prompt 0", "prompt 2"], ["prompt 1"]]


def test_each_query_of_a_batch_gets_its_own_error(redis: Redis, core: FakeCore, start_worker: Start):
    send(redis, "q-1", query=question("long text"))
    send(redis, "q-2")
    start_worker()
    found = answered(redis, 2)
    assert problem_of(found["q-1"]) == "too_long"
    assert found["q-2"].answer is not None


def test_a_query_for_an_index_that_is_not_there_is_told_so(redis: Redis, core: FakeCore, start_worker: Start):
    send(redis, query=question(index="absent"))
    start_worker()
    assert problem_of(answered(redis)["q-1"]) == "index_not_found"


def test_a_bug_is_an_internal_problem_without_details_and_the_worker_lives_on(
    redis: Redis, core: FakeCore, start_worker: Start, caplog: pytest.LogCaptureFixture
):
    send(redis, query=question("crash"))
    start_worker()
    reply = answered(redis)["q-1"]
    assert problem_of(reply) == "internal"
    assert "secret" not in reply.model_dump_json()
    assert "a bug, with a secret in it" in caplog.text
    send(redis, "q-2")
    assert answered(redis, 2)["q-2"].answer is not None


def test_a_query_that_expires_in_the_workers_hands_is_never_computed(
    redis: Redis, core: FakeCore, settings: Settings, start_worker: Start, monkeypatch: pytest.MonkeyPatch
):
    take = QueryQueue.take

    def late(self: QueryQueue, block_s: float = 0) -> Any:
        taken = take(self, block_s)
        return [one.model_copy(update={"deadline": 0}) for one in taken]

    monkeypatch.setattr(QueryQueue, "take", late)
    send(redis)
    start_worker()
    assert problem_of(answered(redis)["q-1"]) == "deadline_exceeded"
    assert core.batches == []


def test_a_job_is_built_and_succeeds(redis: Redis, core: FakeCore, settings: Settings, start_worker: Start):
    submit(redis, index="new")
    start_worker()
    assert ended(redis).state == "succeeded"
    assert (settings.indexes_dir / "new" / "manifest.json").exists()


def test_a_users_error_fails_the_job_with_its_code(redis: Redis, core: FakeCore, start_worker: Start):
    def fail(number: int) -> None:
        raise ModelNotFound("no model tiny")

    core.during = fail
    submit(redis, index="new")
    start_worker()
    error = ended(redis).error
    assert error is not None
    assert (error.code, error.detail) == ("model_not_found", "no model tiny")


class PanicError(BaseException):
    """What code in Rust raises is no Exception."""


@pytest.mark.parametrize("kind", [RuntimeError, PanicError])
def test_a_bug_in_a_build_fails_the_job_and_the_next_one_is_built(
    redis: Redis, core: FakeCore, start_worker: Start, kind: type[BaseException]
):
    def fail(number: int) -> None:
        core.during = lambda number: None
        raise kind("a secret")

    core.during = fail
    submit(redis, "j-1", "one")
    submit(redis, "j-2", "two")
    start_worker()
    assert ended(redis, "j-2").state == "succeeded"
    error = ended(redis, "j-1").error
    assert error is not None
    assert error.code == "internal"
    assert kind.__name__ in error.detail
    assert "secret" not in error.detail


def test_a_build_yields_to_queries_between_its_batches(redis: Redis, core: FakeCore, start_worker: Start):
    seen: list[int] = []

    def ask(number: int) -> None:
        seen.append(len(replies(redis)))
        send(redis, f"q-{number}")

    core.during = ask
    submit(redis, index="new")
    start_worker()
    assert ended(redis).state == "succeeded"
    assert seen == [0, 1, 2]


def test_a_running_build_is_cancelled_between_batches_and_leaves_nothing(
    redis: Redis, core: FakeCore, settings: Settings, start_worker: Start
):
    core.total, core.batch_s = 100_000, 0.01
    core.during = lambda number: redis.hset(keys.job_key("j-1"), "cancel", "1")
    submit(redis, index="new")
    start_worker()
    assert ended(redis).state == "cancelled"
    assert not (settings.indexes_dir / "new").exists()
    assert redis.hgetall(keys.BUILDING) == {}


def test_it_is_too_late_to_cancel_a_published_index(redis: Redis, core: FakeCore, start_worker: Start):
    core.after_publish = lambda: redis.hset(keys.job_key("j-1"), "cancel", "1")
    submit(redis, index="new")
    start_worker()
    assert ended(redis).state == "succeeded"


def test_a_stolen_job_is_let_go_before_anything_is_published(
    redis: Redis, core: FakeCore, settings: Settings, start_worker: Start, make_queue: Any
):
    def steal(number: int) -> None:
        if number == 1:
            let_lapse(redis)
            assert make_queue("thief").take_job() is not None

    core.during = steal
    submit(redis, index="new")
    start_worker()
    until(lambda: record_of(redis).deliveries == 2)
    send(redis)
    answered(redis)  # the worker has let go of the job, and works on
    assert record_of(redis).state == "running"
    assert not (settings.indexes_dir / "new" / "manifest.json").exists()


def test_a_long_batch_is_not_stolen_while_the_lease_is_renewed(
    redis: Redis, core: FakeCore, settings: Settings, start_worker: Start
):
    core.total, core.batch_s = 1, 2.5 * settings.lease_s
    submit(redis, index="new")
    start_worker()
    start_worker()
    record = ended(redis)
    assert (record.state, record.deliveries, len(core.builds)) == ("succeeded", 1, 1)


def test_a_worker_that_is_stopped_hands_its_build_back_and_another_goes_on(
    redis: Redis, core: FakeCore, start_worker: Start
):
    core.total, core.batch_s = 20, 0.02
    submit(redis, index="new")
    first = start_worker()
    until(lambda: record_of(redis).progress.done >= 2)
    first.stop()
    until(lambda: record_of(redis).state == "queued")
    done = record_of(redis).progress.done
    start_worker()
    record = ended(redis)
    assert (record.state, record.deliveries, len(core.builds)) == ("succeeded", 1, 2)
    assert done < 20


def test_a_directory_that_the_last_worker_still_holds_is_waited_for(
    redis: Redis, core: FakeCore, start_worker: Start, make_queue: Any
):
    def busy(number: int) -> None:
        core.during = lambda number: None
        raise IndexBusy("held by another process")

    submit(redis, index="new")
    assert make_queue("dead").take_job() is not None
    let_lapse(redis)
    core.during = busy
    start_worker()
    record = ended(redis)
    assert (record.state, record.deliveries) == ("succeeded", 3)


def test_a_worker_shows_its_heartbeat_and_takes_it_with_it(redis: Redis, core: FakeCore, start_worker: Start):
    runner = start_worker()
    (worker_id,) = until(lambda: redis.smembers(keys.WORKERS))
    beat = Heartbeat.model_validate_json(cast("str", redis.get(keys.worker_key(worker_id))))
    assert 2**20 < beat.memory_bytes == read_memory_bytes(beat.metrics)
    runner.stop()
    until(lambda: not redis.exists(keys.WORKERS, keys.worker_key(worker_id)))


def test_a_worker_waits_for_a_redis_that_is_away_and_starts_over_when_it_lost_everything(
    redis: Redis, core: FakeCore, start_worker: Start, monkeypatch: pytest.MonkeyPatch
):
    take, failures = QueryQueue.take, iter(range(3))

    def away(self: QueryQueue, block_s: float = 0) -> Any:
        if next(failures, None) is not None:
            raise RedisConnectionError("Connection refused")
        return take(self, block_s)

    monkeypatch.setattr(QueryQueue, "take", away)
    start_worker()
    send(redis)
    answered(redis)
    redis.flushdb()
    send(redis)
    answered(redis)


def test_what_a_build_made_is_handed_in_once_redis_is_back(
    redis: Redis, core: FakeCore, start_worker: Start, monkeypatch: pytest.MonkeyPatch
):
    finish, failures = WorkerQueue.finish, iter(range(3))

    def away(self: WorkerQueue, *args: Any) -> None:
        if next(failures, None) is not None:
            raise RedisConnectionError("Connection refused")
        finish(self, *args)

    monkeypatch.setattr(WorkerQueue, "finish", away)
    submit(redis, index="new")
    start_worker()
    assert (ended(redis).state, len(core.builds)) == ("succeeded", 1)


def test_a_build_goes_on_while_redis_is_away_for_less_than_the_lease(
    redis: Redis, core: FakeCore, start_worker: Start, monkeypatch: pytest.MonkeyPatch
):
    def away(self: WorkerQueue, *args: Any) -> None:
        raise RedisConnectionError("Connection refused")

    monkeypatch.setattr(WorkerQueue, "publish_progress", away)
    submit(redis, index="new")
    start_worker()
    assert (ended(redis).state, len(core.builds)) == ("succeeded", 1)


def test_a_side_thread_that_dies_ends_the_worker(
    redis: Redis,
    core: FakeCore,
    settings: Settings,
    queue: WorkerQueue,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
):
    def bug(self: WorkerQueue, heartbeat: object) -> None:
        raise TypeError("a bug")

    monkeypatch.setattr(WorkerQueue, "send_heartbeat", bug)
    monkeypatch.setattr(threading, "excepthook", lambda args: logger.error("%s", args.exc_value))
    with pytest.raises(RuntimeError, match="has died"):
        Runner(queue, settings, "fake").run()
    assert "a bug" in caplog.text
