"""Totals take many steps, between which the worker answers other queries."""

import asyncio
import time
from collections.abc import Callable

import pytest
from redis import Redis

from bergson_core.errors import DeadlineExceeded, IndexBusy, InvalidInput
from bergson_core.schemas.totals.spec import TotalsSpec
from service.queue.broker import Broker
from tests.worker.fakes import FakeCore, make_query, publish_index
from tests.worker.helpers import (
    problem_code,
    read_replies,
    remaining_query_keys,
    send_query,
    submit_job,
    wait_for_replies,
)
from worker.process.runner import Runner
from worker.queue.redis_keys import query_key
from worker.settings import Settings

ONE_REDIS = True

Start = Callable[[], Runner]
SPEC = TotalsSpec(by="source")


@pytest.fixture(autouse=True)
def facts(settings: Settings) -> None:
    publish_index(settings.indexes_dir / "facts")


def test_queries_are_answered_between_their_steps(redis: Redis, core: FakeCore, start_worker: Start):
    def ask(number: int) -> None:
        assert len(read_replies(redis)) == number
        send_query(redis, f"q-{number}")

    core.during_totals = ask
    send_query(redis, "totals", totals=SPEC)
    start_worker()
    replies = wait_for_replies(redis, 4)
    assert [reply.query_id for reply in read_replies(redis)] == ["q-0", "q-1", "q-2", "totals"]
    reply = replies["totals"]
    assert reply.answer is None and reply.problem is None and reply.totals is not None
    assert (reply.totals.by, reply.totals.threshold) == ("source", 3)
    timing = reply.totals.timing_ms
    assert timing.total == pytest.approx(timing.queue + 3 + 4)


@pytest.mark.parametrize(
    ("error", "code"), [(InvalidInput("no column"), "invalid_input"), (RuntimeError("a bug"), "internal")]
)
def test_an_error_affects_them_alone(
    redis: Redis, core: FakeCore, start_worker: Start, error: Exception, code: str
):
    def fail(number: int) -> None:
        raise error

    core.during_totals = fail
    send_query(redis, "totals", totals=SPEC)
    send_query(redis, "plain")
    start_worker()
    replies = wait_for_replies(redis, 2)
    assert problem_code(replies["totals"]) == code
    assert replies["plain"].answer is not None


def test_they_end_when_nobody_waits_for_them(redis: Redis, core: FakeCore, start_worker: Start):
    steps: list[int] = []

    def withdraw(number: int) -> None:
        steps.append(number)
        redis.delete(query_key("totals"))

    core.during_totals = withdraw
    send_query(redis, "totals", totals=SPEC)
    start_worker()
    assert problem_code(wait_for_replies(redis)["totals"]) == "cancelled"
    assert steps == [0]
    assert remaining_query_keys(redis) == []


def test_a_build_goes_on_with_them_in_between(redis: Redis, core: FakeCore, start_worker: Start):
    def ask(number: int) -> None:
        if number == 0:
            send_query(redis, "totals", totals=SPEC)
        elif number == 1:
            assert len(read_replies(redis)) == 1

    core.during = ask
    submit_job(redis, index="new")
    start_worker()
    assert wait_for_replies(redis)["totals"].totals is not None


async def test_a_web_process_gets_them(
    redis: Redis, core: FakeCore, broker: Broker, settings: Settings, start_worker: Start
):
    start_worker()
    for _ in range(500):
        if await broker.list_workers():
            break
        await asyncio.sleep(0.02)
    totals = await broker.ask_totals(make_query(), SPEC, "r", timeout_s=20)
    assert (totals.index, totals.query.completion) == ("facts", " London")
    core.during_totals = lambda number: time.sleep(0.3)
    with pytest.raises(DeadlineExceeded):
        await broker.ask_totals(make_query(), SPEC, "r", timeout_s=0.2)
    core.during_totals = lambda number: None
    submit_job(redis, index="new")
    core.batch_s = 0.3
    with pytest.raises(IndexBusy):
        await broker.ask_totals(make_query(index="new"), SPEC, "r", timeout_s=20)
