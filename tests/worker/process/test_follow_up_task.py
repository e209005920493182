"""Rescoring and verification take long and hold nobody up: the worker answers other queries between their steps."""

import time
from collections.abc import Callable

import pytest
from redis import Redis

from bergson_core.errors import InvalidInput
from bergson_core.schemas.query import VerifySpec
from tests.worker.fakes import FakeCore, make_query, publish_index
from tests.worker.helpers import (
    problem_code,
    read_record,
    read_replies,
    remaining_query_keys,
    send_query,
    submit_job,
    wait_for_replies,
    wait_until,
)
from worker.process.runner import Runner
from worker.queue.job_queue import WorkerQueue
from worker.queue.redis_keys import query_key
from worker.settings import Settings

ONE_REDIS = True

Start = Callable[[], Runner]
VERIFY = VerifySpec(top=2, controls=1)


@pytest.fixture(autouse=True)
def facts(settings: Settings) -> None:
    publish_index(settings.indexes_dir / "facts")


def test_queries_of_its_batch_without_verification_are_answered_first(
    redis: Redis, core: FakeCore, start_worker: Start
):
    replied: list[list[str]] = []
    core.during_verify = lambda number: replied.append([reply.query_id for reply in read_replies(redis)])
    send_query(redis, "q-1", query=make_query("first", verify=VERIFY))
    send_query(redis, "q-2", query=make_query("second"))
    start_worker()
    replies = wait_for_replies(redis, 2)
    assert core.batches == [["first", "second"]], "one pass computes the gradients of both"
    assert replied == [["q-2"]] * 3
    answer = replies["q-1"].answer
    assert answer is not None and answer.verification is not None
    assert answer.timing_ms.total == pytest.approx(answer.timing_ms.queue + 3 + 5)
    assert replies["q-2"].answer is not None and replies["q-2"].answer.verification is None
    assert remaining_query_keys(redis) == []


def test_later_queries_are_answered_between_two_steps(redis: Redis, core: FakeCore, start_worker: Start):
    def ask(number: int) -> None:
        assert len(read_replies(redis)) == number
        send_query(redis, f"q-{number}")

    core.during_verify = ask
    send_query(redis, "slow", query=make_query("slow", verify=VERIFY))
    start_worker()
    wait_for_replies(redis, 4)
    assert [reply.query_id for reply in read_replies(redis)] == ["q-0", "q-1", "q-2", "slow"]


def test_interactive_queries_are_verified_before_batch_queries(
    redis: Redis, core: FakeCore, start_worker: Start
):
    def ask(number: int) -> None:
        core.during_verify = lambda number: None
        send_query(redis, "mine", query=make_query("mine", verify=VERIFY))

    core.during_verify = ask
    for number in range(2):
        query = make_query(f"batch {number}", verify=VERIFY)
        send_query(redis, f"batch {number}", priority="batch", query=query)
    start_worker()
    wait_for_replies(redis, 3)
    assert core.verified == ["batch 0", *["mine"] * 3, *["batch 0"] * 2, *["batch 1"] * 3]


def test_a_verification_past_its_deadline_is_not_continued(redis: Redis, core: FakeCore, start_worker: Start):
    runner = start_worker()

    def end_deadline(number: int) -> None:
        (task,) = runner._query_loop.follow_ups
        task.query = task.query.model_copy(update={"deadline": 0})

    core.during_verify = end_deadline
    send_query(redis, "q-1", query=make_query(verify=VERIFY))
    assert problem_code(wait_for_replies(redis)["q-1"]) == "deadline_exceeded"
    assert len(core.verified) == 1
    assert remaining_query_keys(redis) == []


def test_a_withdrawn_verification_is_not_continued(redis: Redis, core: FakeCore, start_worker: Start):
    core.during_verify = lambda number: redis.delete(query_key("q-1"))
    send_query(redis, "q-1", query=make_query(verify=VERIFY))
    start_worker()
    assert problem_code(wait_for_replies(redis)["q-1"]) == "cancelled"
    assert len(core.verified) == 1
    assert remaining_query_keys(redis) == []


@pytest.mark.parametrize(
    ("error", "code"), [(InvalidInput("no gradient"), "invalid_input"), (RuntimeError("a bug"), "internal")]
)
def test_an_error_in_a_verification_affects_its_query_only(
    redis: Redis, core: FakeCore, start_worker: Start, error: Exception, code: str
):
    def fail(number: int) -> None:
        raise error

    core.during_verify = fail
    send_query(redis, "q-1", query=make_query(verify=VERIFY))
    start_worker()
    assert problem_code(wait_for_replies(redis)["q-1"]) == code
    core.during_verify = lambda number: None
    send_query(redis, "q-2", query=make_query(verify=VERIFY))
    assert wait_for_replies(redis, 2)["q-2"].answer is not None


def test_its_lease_is_renewed_until_it_is_done(
    redis: Redis, core: FakeCore, settings: Settings, start_worker: Start
):
    core.during_verify = lambda number: time.sleep(settings.query_lease_s / 2)
    send_query(redis, query=make_query(verify=VERIFY))
    start_worker()
    start_worker()
    wait_for_replies(redis)
    assert len(core.verified) == 3
    assert core.batches == [["Ada was born in"]]


def test_a_build_yields_to_it(redis: Redis, core: FakeCore, start_worker: Start):
    def ask(number: int) -> None:
        if number == 0:
            send_query(redis, query=make_query(verify=VERIFY))
        elif number == 1:
            assert len(read_replies(redis)) == 1

    core.during = ask
    submit_job(redis, index="new")
    start_worker()
    wait_until(lambda: read_record(redis).finished_at)
    assert read_record(redis).state == "succeeded"


def test_a_worker_that_is_stopped_completes_it(redis: Redis, core: FakeCore, start_worker: Start):
    runner = start_worker()
    core.during_verify = lambda number: runner.stop()
    send_query(redis, query=make_query(verify=VERIFY))
    assert wait_for_replies(redis)["q-1"].answer is not None
    assert len(core.verified) == 3


def test_rescoring_comes_before_verification_and_both_are_in_the_answer(
    redis: Redis, core: FakeCore, start_worker: Start
):
    core.during_verify = lambda number: core.rescored.append("verified")
    send_query(redis, "q-1", query=make_query("both", verify=VERIFY, rescore=2))
    send_query(redis, "q-2", query=make_query("plain"))
    start_worker()
    replies = wait_for_replies(redis, 2)
    assert [reply.query_id for reply in read_replies(redis)] == ["q-2", "q-1"]
    assert core.rescored == ["both", "both", "verified", "verified", "verified"]
    answer = replies["q-1"].answer
    assert answer is not None and answer.rescored is not None and answer.verification is not None
    assert (answer.timing_ms.rescore, answer.timing_ms.verify) == (7, 5)
    assert answer.timing_ms.total == pytest.approx(answer.timing_ms.queue + 3 + 7 + 5)


def test_an_answer_whose_candidates_are_not_all_scored_comes_before_the_deadline(
    redis: Redis, core: FakeCore, start_worker: Start
):
    core.during_rescore = lambda number: time.sleep(0.05)
    started = time.time()
    send_query(redis, "q-1", query=make_query(rescore=1000), timeout_s=2.0)
    start_worker()
    answer = wait_for_replies(redis)["q-1"].answer
    assert answer is not None and answer.rescored is not None
    assert 0 < answer.rescored.exact < 1000
    assert time.time() < started + 2
    assert remaining_query_keys(redis) == []


def test_a_query_whose_time_to_rescore_is_over_is_answered_while_another_is_rescored(
    redis: Redis, core: FakeCore, start_worker: Start
):
    def rescore(number: int) -> None:
        if not sent:
            sent.append(number)
            send_query(redis, "quick", query=make_query("quick", rescore=50), priority="batch", timeout_s=1.5)
        time.sleep(0.05)

    sent: list[int] = []
    core.during_rescore = rescore
    send_query(redis, "slow", query=make_query("slow", rescore=50))
    start_worker()
    replies = wait_for_replies(redis, 2)
    assert [reply.query_id for reply in read_replies(redis)] == ["quick", "slow"]
    quick, slow = (replies[name].answer for name in ("quick", "slow"))
    assert quick is not None and quick.rescored is not None and quick.rescored.exact == 0
    assert slow is not None and slow.rescored is not None and slow.rescored.exact == 50


def test_half_of_the_time_is_left_for_a_verification(redis: Redis, core: FakeCore, start_worker: Start):
    core.during_rescore = lambda number: time.sleep(0.05)
    sent_at = time.time()
    times: list[float] = []
    core.during_verify = lambda number: times.append(time.time() - sent_at)
    send_query(redis, "q-1", query=make_query(verify=VERIFY, rescore=1000), timeout_s=2.0)
    start_worker()
    answer = wait_for_replies(redis)["q-1"].answer
    assert answer is not None and answer.verification is not None
    assert times[0] < 1.6


def test_a_withdrawn_query_is_not_awaited_any_more(redis: Redis, queue: WorkerQueue):
    send_query(redis)
    (taken,) = queue.queries.take()
    assert queue.queries.is_awaited(taken)
    redis.delete(query_key("q-1"))
    assert not queue.queries.is_awaited(taken)
    assert queue.queries.take() == []
