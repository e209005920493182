"""Workers as threads of this process, over a fake core and a real Redis. test_killed.py has workers that are killed."""

import logging
import os
import threading
import time
from collections.abc import Callable
from typing import Any, cast

import pytest
from redis import Redis
from redis.exceptions import ConnectionError as RedisConnectionError

from bergson_core.errors import IndexBusy, LeaseLost, ModelNotFound
from bergson_core.storage.index_lock import lock_index
from tests.processes import stopped_takedown
from tests.worker.fakes import FakeCore, make_query, publish_index
from tests.worker.helpers import (
    expire_leases,
    problem_code,
    read_record,
    read_replies,
    send_query,
    submit_job,
    wait_for_replies,
    wait_until,
)
from worker.messages import Heartbeat, JobRecord
from worker.process.runner import Runner
from worker.queue import job_queue
from worker.queue import redis_keys as keys
from worker.queue.job_queue import WorkerQueue
from worker.queue.query_queue import QueryQueue
from worker.settings import Settings
from worker.telemetry.metrics import read_memory_bytes

logger = logging.getLogger(__name__)
Start = Callable[[], Runner]


@pytest.fixture(autouse=True)
def facts(settings: Settings) -> None:
    publish_index(settings.indexes_dir / "facts")


def wait_for_end(redis: Redis, job_id: str = "j-1") -> JobRecord:
    """Returns the record of a job once it has ended."""
    return wait_until(lambda: (record := read_record(redis, job_id)).finished_at and record)


def test_a_query_is_answered_with_the_time_that_it_waited(redis: Redis, core: FakeCore, start_worker: Start):
    send_query(redis)
    start_worker()
    answer = wait_for_replies(redis)["q-1"].answer
    assert answer is not None
    assert answer.timing_ms.queue > 0
    assert answer.timing_ms.total == pytest.approx(answer.timing_ms.queue + 3)


def test_waiting_queries_of_an_index_are_answered_in_one_batch(
    redis: Redis, core: FakeCore, settings: Settings, start_worker: Start
):
    publish_index(settings.indexes_dir / "poems")
    for number, index in enumerate(["facts", "poems", "facts"]):
        send_query(redis, f"q-{number}", query=make_query(f"prompt {number}", index))
    start_worker()
    wait_for_replies(redis, 3)
    assert core.batches == [["prompt 0", "prompt 2"], ["prompt 1"]]


def test_each_query_of_a_batch_gets_its_own_error(redis: Redis, core: FakeCore, start_worker: Start):
    send_query(redis, "q-1", query=make_query("long text"))
    send_query(redis, "q-2")
    start_worker()
    replies = wait_for_replies(redis, 2)
    assert problem_code(replies["q-1"]) == "too_long"
    assert replies["q-2"].answer is not None


def test_a_query_for_a_missing_index_is_a_problem(redis: Redis, core: FakeCore, start_worker: Start):
    send_query(redis, query=make_query(index="absent"))
    start_worker()
    assert problem_code(wait_for_replies(redis)["q-1"]) == "index_not_found"


def test_a_bug_is_an_internal_problem_without_details_and_the_worker_lives_on(
    redis: Redis, core: FakeCore, start_worker: Start, caplog: pytest.LogCaptureFixture
):
    send_query(redis, query=make_query("crash"))
    start_worker()
    reply = wait_for_replies(redis)["q-1"]
    assert problem_code(reply) == "internal"
    assert "secret" not in reply.model_dump_json()
    assert "a bug, with a secret in it" in caplog.text
    send_query(redis, "q-2")
    assert wait_for_replies(redis, 2)["q-2"].answer is not None


def test_a_query_with_a_bug_takes_no_other_query_down_with_it(
    redis: Redis, core: FakeCore, start_worker: Start
):
    prompts = ["Ada", "crash", "long", "Bo"]
    for number, prompt in enumerate(prompts):
        send_query(redis, f"q-{number}", query=make_query(prompt))
    start_worker()
    replies = wait_for_replies(redis, len(prompts))
    problems = [replies[f"q-{number}"].problem for number in range(len(prompts))]
    assert [problem and problem.code for problem in problems] == [None, "internal", "too_long", None]
    assert core.batches == [prompts, *([prompt] for prompt in prompts)]


def test_a_query_that_expires_in_the_workers_hands_is_never_computed(
    redis: Redis, core: FakeCore, settings: Settings, start_worker: Start, monkeypatch: pytest.MonkeyPatch
):
    take = QueryQueue.take

    def take_late(self: QueryQueue, block_s: float = 0) -> Any:
        return [query.model_copy(update={"deadline": 0}) for query in take(self, block_s)]

    monkeypatch.setattr(QueryQueue, "take", take_late)
    send_query(redis)
    start_worker()
    assert problem_code(wait_for_replies(redis)["q-1"]) == "deadline_exceeded"
    assert core.batches == []


def test_a_job_is_built_and_succeeds(redis: Redis, core: FakeCore, settings: Settings, start_worker: Start):
    submit_job(redis, index="new")
    start_worker()
    assert wait_for_end(redis).state == "succeeded"
    assert (settings.indexes_dir / "new" / "manifest.json").exists()


def test_a_users_error_fails_the_job_with_its_code(redis: Redis, core: FakeCore, start_worker: Start):
    def fail(number: int) -> None:
        raise ModelNotFound("no model tiny")

    core.during = fail
    submit_job(redis, index="new")
    start_worker()
    error = wait_for_end(redis).error
    assert error is not None
    assert (error.code, error.detail) == ("model_not_found", "no model tiny")


class PanicError(BaseException):
    """A panic in Rust code raises a BaseException that is no Exception."""


@pytest.mark.parametrize("kind", [RuntimeError, PanicError])
def test_a_bug_in_a_build_fails_the_job_and_the_next_one_is_built(
    redis: Redis, core: FakeCore, start_worker: Start, kind: type[BaseException]
):
    def fail(number: int) -> None:
        core.during = lambda number: None
        raise kind("a secret")

    core.during = fail
    submit_job(redis, "j-1", "one")
    submit_job(redis, "j-2", "two")
    start_worker()
    assert wait_for_end(redis, "j-2").state == "succeeded"
    error = wait_for_end(redis, "j-1").error
    assert error is not None
    assert error.code == "internal"
    assert kind.__name__ in error.detail
    assert "secret" not in error.detail


def test_a_build_yields_to_queries_between_its_batches(redis: Redis, core: FakeCore, start_worker: Start):
    replies_before: list[int] = []

    def ask(number: int) -> None:
        replies_before.append(len(read_replies(redis)))
        send_query(redis, f"q-{number}")

    core.during = ask
    submit_job(redis, index="new")
    start_worker()
    assert wait_for_end(redis).state == "succeeded"
    assert replies_before == [0, 1, 2]


def test_a_running_build_is_cancelled_between_batches_and_leaves_nothing(
    redis: Redis, core: FakeCore, settings: Settings, start_worker: Start
):
    core.total, core.batch_s = 100_000, 0.01
    core.during = lambda number: redis.hset(keys.job_key("j-1"), "cancel", "1")
    submit_job(redis, index="new")
    start_worker()
    assert wait_for_end(redis).state == "cancelled"
    assert not (settings.indexes_dir / "new").exists()
    assert redis.hgetall(keys.BUILDING) == {}


def test_it_is_too_late_to_cancel_a_published_index(redis: Redis, core: FakeCore, start_worker: Start):
    core.after_publish = lambda: redis.hset(keys.job_key("j-1"), "cancel", "1")
    submit_job(redis, index="new")
    start_worker()
    assert wait_for_end(redis).state == "succeeded"


def test_a_job_that_was_taken_over_publishes_nothing(
    redis: Redis, core: FakeCore, settings: Settings, start_worker: Start, make_queue: Any
):
    def take_over(number: int) -> None:
        if number == 1:
            expire_leases(redis)
            assert make_queue("other").take_job() is not None

    core.during = take_over
    submit_job(redis, index="new")
    start_worker()
    wait_until(lambda: read_record(redis).deliveries == 2)
    send_query(redis)
    wait_for_replies(redis)  # the worker has stopped the job, and works on
    assert read_record(redis).state == "running"
    assert not (settings.indexes_dir / "new" / "manifest.json").exists()


def test_a_long_batch_is_not_taken_over_while_its_lease_is_renewed(
    redis: Redis, core: FakeCore, settings: Settings, start_worker: Start
):
    core.total, core.batch_s = 1, 2.5 * settings.lease_s
    submit_job(redis, index="new")
    start_worker()
    start_worker()
    record = wait_for_end(redis)
    assert (record.state, record.deliveries, len(core.builds)) == ("succeeded", 1, 1)


def test_a_worker_that_is_stopped_hands_its_build_back_and_another_resumes_it(
    redis: Redis, core: FakeCore, start_worker: Start, caplog: pytest.LogCaptureFixture
):
    caplog.set_level("INFO")
    core.total, core.batch_s = 20, 0.02
    submit_job(redis, index="new")
    first = start_worker()
    wait_until(lambda: read_record(redis).progress.done >= 2)
    first.stop()
    wait_until(lambda: read_record(redis).state == "queued")
    done = read_record(redis).progress.done
    start_worker()
    record = wait_for_end(redis)
    assert (record.state, record.deliveries, len(core.builds)) == ("succeeded", 1, 2)
    assert done < 20
    assert f"job {record.job_id} is handed back, since this worker stops" in caplog.text


def test_a_directory_that_the_previous_worker_still_holds_is_waited_for(
    redis: Redis, core: FakeCore, start_worker: Start, make_queue: Any
):
    def busy(number: int) -> None:
        core.during = lambda number: None
        raise IndexBusy("held by another process")

    submit_job(redis, index="new")
    assert make_queue("dead").take_job() is not None
    expire_leases(redis)
    core.during = busy
    start_worker()
    record = wait_for_end(redis)
    assert (record.state, record.deliveries) == ("succeeded", 2)  # the start that found it busy is none


def test_a_job_waits_for_the_process_that_writes_its_index_however_often_it_is_looked_at(
    redis: Redis,
    core: FakeCore,
    settings: Settings,
    start_worker: Start,
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setattr(job_queue, "_BUSY_PAUSE_S", 0.01)
    directory = settings.indexes_dir / "new"
    directory.mkdir(parents=True)
    with lock_index(directory):
        submit_job(redis, "j-1", index="new")
        submit_job(redis, "j-2", index="other")
        start_worker()
        assert wait_for_end(redis, "j-2").state == "succeeded"  # other jobs go on
        record = wait_until(lambda: (current := read_record(redis)).waits_for and current)
        assert (record.state, record.deliveries) == ("queued", 0)
        assert f"(process {os.getpid()} on " in record.waits_for
        time.sleep(1.5 * settings.lease_s)
        assert read_record(redis) == record
    record = wait_for_end(redis)
    assert (record.state, record.deliveries, record.waits_for) == ("succeeded", 1, None)


def test_a_job_waits_for_a_process_that_is_stopped_in_a_takedown_and_does_no_work_meanwhile(
    redis: Redis, core: FakeCore, settings: Settings, start_worker: Start, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(job_queue, "_BUSY_PAUSE_S", 0.01)
    directory = settings.indexes_dir / "new"
    directory.mkdir(parents=True)
    with stopped_takedown(directory, stopped_s=60) as pid:
        submit_job(redis, index="new")
        start_worker()
        record = wait_until(lambda: (current := read_record(redis)).waits_for and current)
        assert (record.state, record.deliveries, core.builds) == ("queued", 0, [])
        assert f"(process {pid} on " in record.waits_for
    record = wait_for_end(redis)
    assert (record.state, record.deliveries, record.waits_for) == ("succeeded", 1, None)


@pytest.mark.parametrize("is_first", [True, False])
def test_a_job_that_waits_for_another_process_can_be_cancelled(
    redis: Redis,
    core: FakeCore,
    settings: Settings,
    start_worker: Start,
    make_queue: Any,
    is_first: bool,
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setattr(job_queue, "_BUSY_PAUSE_S", 0.01)
    submit_job(redis, index="new")
    if not is_first:
        assert make_queue("frozen").take_job() is not None
        expire_leases(redis)
    directory = settings.indexes_dir / "new"
    directory.mkdir(parents=True)
    with lock_index(directory):
        start_worker()
        wait_until(lambda: read_record(redis).waits_for)
        redis.hset(keys.job_key("j-1"), "cancel", "1")
        assert wait_for_end(redis).state == "cancelled"
    assert core.builds == []


def test_the_worker_that_lost_a_job_which_was_cancelled_meanwhile_discards_what_it_left(
    redis: Redis, core: FakeCore, settings: Settings, start_worker: Start, make_queue: Any
):
    def lose(number: int) -> None:
        expire_leases(redis)
        redis.hset(keys.job_key("j-1"), "cancel", "1")
        assert make_queue("other").take_job() is None
        raise LeaseLost("x")

    core.during = lose
    submit_job(redis, index="new")
    start_worker()
    assert wait_for_end(redis).state == "cancelled"
    wait_until(lambda: not (settings.indexes_dir / "new").exists())


def test_a_worker_has_a_heartbeat_and_removes_it_at_the_end(
    redis: Redis, core: FakeCore, start_worker: Start
):
    runner = start_worker()
    (worker_id,) = wait_until(lambda: redis.smembers(keys.WORKERS))
    heartbeat = Heartbeat.model_validate_json(cast("str", redis.get(keys.worker_key(worker_id))))
    assert 2**20 < heartbeat.memory_bytes == read_memory_bytes(heartbeat.metrics)
    runner.stop()
    wait_until(lambda: not redis.exists(keys.WORKERS, keys.worker_key(worker_id)))


def test_a_worker_waits_for_a_redis_that_does_not_answer_or_has_lost_its_data(
    redis: Redis, core: FakeCore, start_worker: Start, monkeypatch: pytest.MonkeyPatch
):
    take, failures = QueryQueue.take, iter(range(3))

    def away(self: QueryQueue, block_s: float = 0) -> Any:
        if next(failures, None) is not None:
            raise RedisConnectionError("Connection refused")
        return take(self, block_s)

    monkeypatch.setattr(QueryQueue, "take", away)
    start_worker()
    send_query(redis)
    wait_for_replies(redis)
    redis.flushdb()
    send_query(redis)
    wait_for_replies(redis)


def test_the_end_of_a_build_is_recorded_once_redis_answers_again(
    redis: Redis, core: FakeCore, start_worker: Start, monkeypatch: pytest.MonkeyPatch
):
    finish, failures = WorkerQueue.finish, iter(range(3))

    def away(self: WorkerQueue, *args: Any) -> None:
        if next(failures, None) is not None:
            raise RedisConnectionError("Connection refused")
        finish(self, *args)

    monkeypatch.setattr(WorkerQueue, "finish", away)
    submit_job(redis, index="new")
    start_worker()
    assert (wait_for_end(redis).state, len(core.builds)) == ("succeeded", 1)


def test_a_build_goes_on_while_redis_is_away_for_less_than_the_lease(
    redis: Redis, core: FakeCore, start_worker: Start, monkeypatch: pytest.MonkeyPatch
):
    def away(self: WorkerQueue, *args: Any) -> None:
        raise RedisConnectionError("Connection refused")

    monkeypatch.setattr(WorkerQueue, "publish_progress", away)
    submit_job(redis, index="new")
    start_worker()
    assert (wait_for_end(redis).state, len(core.builds)) == ("succeeded", 1)


def test_the_death_of_the_heartbeat_thread_ends_the_worker(
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
