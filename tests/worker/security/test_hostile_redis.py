"""What somebody puts into Redis by hand ends no worker, holds up nobody else, and does not come back for ever.

Elsewhere: paths that are not allowed in test_handlers.py, messages of another version in test_queue.py.
"""

from collections.abc import Callable
from typing import Any, cast

import pytest
from redis import Redis

from tests.worker.fakes import question, spec
from tests.worker.helpers import (
    REPLY_TO,
    jobs_left,
    left,
    let_lapse,
    record_of,
    replies,
    send,
    submit,
    taken_ids,
)
from worker.messages import JOB_ADAPTER, BuildJob, JobRecord, Query
from worker.queue import redis_keys as keys
from worker.queue.job_queue import WorkerQueue
from worker.queue.redis_keys import QUERY_LEASES, query_key

MakeQueue = Callable[[str], WorkerQueue]
BUILD = BuildJob(job_id="j-1", index="facts", spec=spec(), request_id="r").model_dump_json()
RECORD = JobRecord(job_id="j-1", kind="build", index="facts", state="queued", created_at=1).model_dump_json()


QUERY = Query(
    query_id="q-1", reply_to=REPLY_TO, request_id="r", sent_at=1, deadline=2, query=question()
).model_dump_json()
DEEP = "[" * 100_000
NO_QUERIES = {
    "deep": DEEP,
    "deep inside": '{"query": ' + DEEP,
    "no object": '"x"',
    "a number of 5000 digits": "9" * 5000,
    "no deadline that comes": QUERY.replace('"deadline":2.0', '"deadline":NaN'),
    "fields of other types": '{"schema_version": 3, "query_id": [], "reply_to": {}, "query": 1}',
}


@pytest.mark.parametrize("message", NO_QUERIES.values(), ids=NO_QUERIES)
def test_a_query_that_somebody_put_there_ends_no_worker_and_does_not_come_back(
    redis: Redis, queue: WorkerQueue, message: str
):
    send(redis, raw=message)
    send(redis, "q-2")
    assert taken_ids(queue) == ["q-2"]
    assert sorted(left(redis)) == sorted([QUERY_LEASES, query_key("q-2")])


@pytest.mark.parametrize("taken", [True, False])
def test_a_query_whose_key_is_of_another_type_holds_up_no_other(
    redis: Redis, make_queue: MakeQueue, taken: bool
):
    send(redis)
    send(redis, "q-2")
    if taken:
        assert len(taken_ids(make_queue("w-1"))) == 2
        let_lapse(redis, QUERY_LEASES)
    redis.delete(query_key("q-1"))
    redis.set(query_key("q-1"), "x")
    assert taken_ids(make_queue("w-2")) == ["q-2"]
    let_lapse(redis, QUERY_LEASES)
    assert "q-1" not in taken_ids(make_queue("w-3"))


def test_a_query_under_the_id_of_another_is_refused(redis: Redis, queue: WorkerQueue):
    other = send(redis, "q-2")
    send(redis, "q-1", raw=other.model_dump_json())
    assert taken_ids(queue) == ["q-2"]
    assert [reply.query_id for reply in replies(redis)] == ["q-1"]


WRONG_JOBS: dict[str, dict[str, str]] = {
    "deep": {"message": DEEP},
    "deep spec": {"message": '{"schema_version": 3, "kind": "build", "spec": ' + DEEP},
    "no kind": {"message": "{}"},
    "a path as its index": {"message": BUILD.replace('"facts"', '"../../etc"')},
    "another's id": {"message": BUILD.replace('"j-1"', '"../j-2"')},
    "no message": {"message": ""},
}


@pytest.mark.parametrize("fields", WRONG_JOBS.values(), ids=WRONG_JOBS)
def test_a_job_that_somebody_put_there_fails_once_and_ends_no_worker(
    redis: Redis, queue: WorkerQueue, fields: dict[str, str]
):
    submit(redis)
    redis.hset(keys.job_key("j-1"), mapping=cast("Any", fields))
    assert queue.take_job() is None
    record = record_of(redis)
    assert record.error is not None
    assert (record.state, record.error.code) == ("failed", "invalid_input")
    assert jobs_left(redis) == []


WRONG_RECORDS: dict[str, dict[str, str]] = {
    "deep": {"record": DEEP},
    "another's": {"record": RECORD.replace('"j-1"', '"j-2"')},
    "started a negative number of times": {"record": RECORD.replace('"deliveries":0', '"deliveries":-9')},
    "token": {"token": "x"},
    "large token": {"token": "9" * 5000},
}


@pytest.mark.parametrize("fields", [*WRONG_RECORDS.values(), None], ids=[*WRONG_RECORDS, "type"])
def test_a_job_without_a_record_that_can_be_read_is_dropped(
    redis: Redis, queue: WorkerQueue, fields: dict[str, str] | None
):
    submit(redis)
    if fields is None:
        redis.delete(keys.job_key("j-1"))
        redis.set(keys.job_key("j-1"), "x")
    else:
        redis.hset(keys.job_key("j-1"), mapping=cast("Any", fields))
    assert queue.take_job() is None
    assert jobs_left(redis) == []
    assert redis.hgetall(keys.BUILDING) == {}


def test_a_huge_message_is_never_read(redis: Redis, queue: WorkerQueue, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("worker.queue.query_queue.MAX_MESSAGE_BYTES", 100)
    monkeypatch.setattr("worker.queue.job_queue.MAX_MESSAGE_BYTES", 100)
    send(redis)
    submit(redis)
    assert queue.queries.take() == []
    assert queue.take_job() is None
    assert (left(redis), jobs_left(redis), record_of(redis).state) == ([], [], "failed")


def test_a_message_that_kills_who_reads_it_is_given_up_too(
    redis: Redis, make_queue: MakeQueue, monkeypatch: pytest.MonkeyPatch
):
    def die(raw: str) -> None:
        raise MemoryError

    submit(redis)
    monkeypatch.setattr(JOB_ADAPTER, "validate_json", die)
    for number in range(3):
        with pytest.raises(MemoryError):
            make_queue(f"w-{number}").take_job()
        let_lapse(redis)
    assert make_queue("w-3").take_job() is None
    assert "given up" in record_of(redis).model_dump_json()
