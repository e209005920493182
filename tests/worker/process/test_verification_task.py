"""A verification takes long, and holds nobody up: the worker answers others between its steps."""

import time
from collections.abc import Callable

import pytest
from redis import Redis

from bergson_core.errors import InvalidInput
from bergson_core.schemas.query import VerifySpec
from tests.worker.fakes import FakeCore, publish, question
from tests.worker.helpers import answered, left, problem_of, record_of, replies, send, submit, until
from worker.process.runner import Runner
from worker.queue.job_queue import WorkerQueue
from worker.queue.redis_keys import query_key
from worker.settings import Settings

Start = Callable[[], Runner]
VERIFY = VerifySpec(top=2, controls=1)


@pytest.fixture(autouse=True)
def facts(settings: Settings) -> None:
    publish(settings.indexes_dir / "facts")


def test_plain_queries_of_its_batch_are_answered_first(redis: Redis, core: FakeCore, start_worker: Start):
    seen: list[list[str]] = []
    core.during_verify = lambda number: seen.append([one.query_id for one in replies(redis)])
    send(redis, "q-1", query=question("first", verify=VERIFY))
    send(redis, "q-2", query=question("second"))
    start_worker()
    found = answered(redis, 2)
    assert core.batches == [["first", "second"]], "one pass has the gradients of both"
    assert seen == [["q-2"]] * 3
    answer = found["q-1"].answer
    assert answer is not None and answer.verification is not None
    assert answer.timing_ms.total == pytest.approx(answer.timing_ms.queue + 3 + 5)
    assert found["q-2"].answer is not None and found["q-2"].answer.verification is None
    assert left(redis) == []


def test_what_comes_later_is_answered_between_two_steps(redis: Redis, core: FakeCore, start_worker: Start):
    def ask(number: int) -> None:
        assert len(replies(redis)) == number
        send(redis, f"q-{number}")

    core.during_verify = ask
    send(redis, "slow", query=question("slow", verify=VERIFY))
    start_worker()
    answered(redis, 4)
    assert [one.query_id for one in replies(redis)] == ["q-0", "q-1", "q-2", "slow"]


def test_a_single_question_is_verified_before_those_of_batches(
    redis: Redis, core: FakeCore, start_worker: Start
):
    def ask(number: int) -> None:
        core.during_verify = lambda number: None
        send(redis, "mine", query=question("mine", verify=VERIFY))

    core.during_verify = ask
    for number in range(2):
        query = question(f"batch {number}", verify=VERIFY)
        send(redis, f"batch {number}", priority="batch", query=query)
    start_worker()
    answered(redis, 3)
    assert core.verified == ["batch 0", *["mine"] * 3, *["batch 0"] * 2, *["batch 1"] * 3]


def test_past_its_deadline_it_is_not_gone_on_with(redis: Redis, core: FakeCore, start_worker: Start):
    runner = start_worker()

    def pass_it(number: int) -> None:
        (one,) = runner._query_loop.verifying
        one.query = one.query.model_copy(update={"deadline": 0})

    core.during_verify = pass_it
    send(redis, "q-1", query=question(verify=VERIFY))
    assert problem_of(answered(redis)["q-1"]) == "deadline_exceeded"
    assert len(core.verified) == 1
    assert left(redis) == []


def test_one_that_was_withdrawn_is_not_gone_on_with(redis: Redis, core: FakeCore, start_worker: Start):
    core.during_verify = lambda number: redis.delete(query_key("q-1"))
    send(redis, "q-1", query=question(verify=VERIFY))
    start_worker()
    assert problem_of(answered(redis)["q-1"]) == "cancelled"
    assert len(core.verified) == 1
    assert left(redis) == []


@pytest.mark.parametrize(
    ("error", "code"), [(InvalidInput("no gradient"), "invalid_input"), (RuntimeError("a bug"), "internal")]
)
def test_an_error_is_that_of_its_query_alone(
    redis: Redis, core: FakeCore, start_worker: Start, error: Exception, code: str
):
    def fail(number: int) -> None:
        raise error

    core.during_verify = fail
    send(redis, "q-1", query=question(verify=VERIFY))
    start_worker()
    assert problem_of(answered(redis)["q-1"]) == code
    core.during_verify = lambda number: None
    send(redis, "q-2", query=question(verify=VERIFY))
    assert answered(redis, 2)["q-2"].answer is not None


def test_its_lease_is_renewed_as_long_as_it_takes(
    redis: Redis, core: FakeCore, settings: Settings, start_worker: Start
):
    core.during_verify = lambda number: time.sleep(settings.query_lease_s / 2)
    send(redis, query=question(verify=VERIFY))
    start_worker()
    start_worker()
    answered(redis)
    assert len(core.verified) == 3
    assert core.batches == [["Ada was born in"]]


def test_a_build_gives_way_to_it(redis: Redis, core: FakeCore, start_worker: Start):
    def ask(number: int) -> None:
        if number == 0:
            send(redis, query=question(verify=VERIFY))
        elif number == 1:
            assert len(replies(redis)) == 1

    core.during = ask
    submit(redis, index="new")
    start_worker()
    until(lambda: record_of(redis).finished_at)
    assert record_of(redis).state == "succeeded"


def test_a_worker_that_is_stopped_brings_it_to_its_end(redis: Redis, core: FakeCore, start_worker: Start):
    runner = start_worker()
    core.during_verify = lambda number: runner.stop()
    send(redis, query=question(verify=VERIFY))
    assert answered(redis)["q-1"].answer is not None
    assert len(core.verified) == 3


def test_a_query_that_is_withdrawn_from_a_worker_is_wanted_no_more(redis: Redis, queue: WorkerQueue):
    send(redis)
    (taken,) = queue.queries.take()
    assert queue.queries.is_awaited(taken)
    redis.delete(query_key("q-1"))
    assert not queue.queries.is_awaited(taken)
    assert queue.queries.take() == []
