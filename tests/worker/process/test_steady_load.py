"""Queries, verifications and jobs get on beside each other, each while the others have work without end."""

import time
from collections.abc import Callable, Iterator
from itertools import count

import pytest
from redis import Redis

from bergson_core.schemas.query import VerifySpec
from tests.worker.fakes import FakeCore, make_query, publish_index
from tests.worker.helpers import read_record, read_replies, send_query, submit_job, wait_until
from worker.process.runner import Runner
from worker.settings import Settings

ONE_REDIS = True

Start = Callable[[], Runner]
QUERY_S = 0.01


@pytest.fixture(autouse=True)
def facts(settings: Settings) -> None:
    publish_index(settings.indexes_dir / "facts")


@pytest.fixture
def answer_times(redis: Redis, core: FakeCore) -> Iterator[list[float]]:
    """While a batch of queries is answered the next one arrives, so that queries wait all the time.

    The list has the times at which batches were answered.
    """
    numbers, times = count(), list[float]()

    def ask_next() -> None:
        time.sleep(QUERY_S)
        times.append(time.monotonic())
        send_query(redis, f"steady-{next(numbers)}")

    core.during_query = ask_next
    send_query(redis, "first")
    yield times
    core.during_query = lambda: None


def replied_ids(redis: Redis) -> set[str]:
    return {reply.query_id for reply in read_replies(redis)}


def test_a_job_starts_and_ends_while_queries_wait_all_the_time(
    redis: Redis, core: FakeCore, answer_times: list[float], start_worker: Start
):
    core.batch_s = 0.05
    start_worker()
    wait_until(lambda: len(answer_times) > 20)
    submit_job(redis, index="new")
    assert wait_until(lambda: read_record(redis).finished_at)
    assert read_record(redis).state == "succeeded"
    before = len(answer_times)
    wait_until(lambda: len(answer_times) > before + 20)


def test_queries_that_wait_all_the_time_are_answered_all_through_a_job(
    redis: Redis, core: FakeCore, answer_times: list[float], start_worker: Start
):
    core.total, core.batch_s = 10, 0.05
    start_worker()
    submit_job(redis, index="new")
    record = wait_until(lambda: (record := read_record(redis)).finished_at and record)
    started, ended = (time.monotonic() - time.time() + at for at in (record.started_at, record.finished_at))
    assert len([at for at in answer_times if started < at < ended]) >= 10


def test_many_jobs_in_a_row_end_while_queries_wait_all_the_time(
    redis: Redis, core: FakeCore, answer_times: list[float], start_worker: Start
):
    start_worker()
    for number in range(10):
        submit_job(redis, f"j-{number}", f"new-{number}")
    wait_until(lambda: all(read_record(redis, f"j-{number}").finished_at for number in range(10)))


def test_jobs_verifications_and_queries_all_get_on_beside_each_other(
    redis: Redis, core: FakeCore, answer_times: list[float], start_worker: Start
):
    core.total, core.batch_s = 1000, 0.02
    core.during_verify = lambda number: time.sleep(5 * QUERY_S)
    start_worker()
    submit_job(redis, index="new")
    wait_until(lambda: read_record(redis).progress.done > 1)
    verify = VerifySpec(top=2, controls=2)
    for number in range(2):
        send_query(redis, f"verified-{number}", query=make_query("slow", verify=verify))
    done, answered = read_record(redis).progress.done, len(answer_times)
    wait_until(lambda: {"verified-0", "verified-1"} <= replied_ids(redis))
    assert read_record(redis).progress.done > done
    assert len(answer_times) > answered


def test_verifications_without_end_do_not_keep_a_job_from_its_end(
    redis: Redis, core: FakeCore, start_worker: Start
):
    numbers, verify = count(), VerifySpec(top=3, controls=3)

    def ask_next(number: int) -> None:
        time.sleep(QUERY_S)
        if number == 0:
            send_query(redis, f"next-{next(numbers)}", query=make_query("slow", verify=verify))

    core.during_verify = ask_next
    send_query(redis, "first", query=make_query("slow", verify=verify))
    start_worker()
    wait_until(lambda: "first" in replied_ids(redis))
    submit_job(redis, index="new")
    wait_until(lambda: read_record(redis).finished_at)
    core.during_verify = lambda number: None
