"""Malformed and hostile messages in Redis end no worker, hold up no other message, and do not come back.

Paths that are not allowed are tested in process/test_path_checks.py, messages of another version in test_job_queue.py.
"""

from collections.abc import Callable
from typing import Any, cast

import pytest
from redis import Redis

from tests.worker.fakes import make_query, make_spec
from tests.worker.helpers import (
    REPLY_TO,
    expire_leases,
    read_record,
    read_replies,
    remaining_job_keys,
    remaining_query_keys,
    send_query,
    submit_job,
    take_query_ids,
)
from worker.messages import JOB_ADAPTER, BuildJob, JobRecord, Query
from worker.queue import redis_keys as keys
from worker.queue.job_queue import WorkerQueue
from worker.queue.redis_keys import QUERY_LEASES, query_key

MakeQueue = Callable[[str], WorkerQueue]
BUILD = BuildJob(job_id="j-1", index="facts", spec=make_spec(), request_id="r").model_dump_json()
RECORD = JobRecord(job_id="j-1", kind="build", index="facts", state="queued", created_at=1).model_dump_json()


QUERY = Query(
    query_id="q-1", reply_to=REPLY_TO, request_id="r", sent_at=1, deadline=2, query=make_query()
).model_dump_json()
DEEP = "[" * 100_000
MALFORMED_QUERIES = {
    "deep": DEEP,
    "deep query": '{"query": ' + DEEP,
    "not an object": '"x"',
    "a number of 5000 digits": "9" * 5000,
    "a deadline that is not a number": QUERY.replace('"deadline":2.0', '"deadline":NaN'),
    "fields of other types": '{"schema_version": 4, "query_id": [], "reply_to": {}, "query": 1}',
}


@pytest.mark.parametrize("message", MALFORMED_QUERIES.values(), ids=MALFORMED_QUERIES)
def test_a_malformed_query_ends_no_worker_and_does_not_come_back(
    redis: Redis, queue: WorkerQueue, message: str
):
    send_query(redis, raw=message)
    send_query(redis, "q-2")
    assert take_query_ids(queue) == ["q-2"]
    assert sorted(remaining_query_keys(redis)) == sorted([QUERY_LEASES, query_key("q-2")])


@pytest.mark.parametrize("taken", [True, False])
def test_a_query_whose_key_has_another_type_holds_up_no_other(
    redis: Redis, make_queue: MakeQueue, taken: bool
):
    send_query(redis)
    send_query(redis, "q-2")
    if taken:
        assert len(take_query_ids(make_queue("w-1"))) == 2
        expire_leases(redis, QUERY_LEASES)
    redis.delete(query_key("q-1"))
    redis.set(query_key("q-1"), "x")
    assert take_query_ids(make_queue("w-2")) == ["q-2"]
    expire_leases(redis, QUERY_LEASES)
    assert "q-1" not in take_query_ids(make_queue("w-3"))


def test_a_query_under_the_id_of_another_is_refused(redis: Redis, queue: WorkerQueue):
    other = send_query(redis, "q-2")
    send_query(redis, "q-1", raw=other.model_dump_json())
    assert take_query_ids(queue) == ["q-2"]
    assert [reply.query_id for reply in read_replies(redis)] == ["q-1"]


MALFORMED_JOBS: dict[str, dict[str, str]] = {
    "deep": {"message": DEEP},
    "deep spec": {"message": '{"schema_version": 4, "kind": "build", "spec": ' + DEEP},
    "no kind": {"message": "{}"},
    "a path as its index": {"message": BUILD.replace('"facts"', '"../../etc"')},
    "another's id": {"message": BUILD.replace('"j-1"', '"../j-2"')},
    "no message": {"message": ""},
}


@pytest.mark.parametrize("fields", MALFORMED_JOBS.values(), ids=MALFORMED_JOBS)
def test_a_malformed_job_fails_once_and_ends_no_worker(
    redis: Redis, queue: WorkerQueue, fields: dict[str, str]
):
    submit_job(redis)
    redis.hset(keys.job_key("j-1"), mapping=cast("Any", fields))
    assert queue.take_job() is None
    record = read_record(redis)
    assert record.error is not None
    assert (record.state, record.error.code) == ("failed", "invalid_input")
    assert remaining_job_keys(redis) == []


MALFORMED_RECORDS: dict[str, dict[str, str]] = {
    "deep": {"record": DEEP},
    "another's": {"record": RECORD.replace('"j-1"', '"j-2"')},
    "started a negative number of times": {"record": RECORD.replace('"deliveries":0', '"deliveries":-9')},
    "token": {"token": "x"},
    "large token": {"token": "9" * 5000},
}


@pytest.mark.parametrize("fields", [*MALFORMED_RECORDS.values(), None], ids=[*MALFORMED_RECORDS, "type"])
def test_a_job_without_a_readable_record_is_dropped(
    redis: Redis, queue: WorkerQueue, fields: dict[str, str] | None
):
    submit_job(redis)
    if fields is None:
        redis.delete(keys.job_key("j-1"))
        redis.set(keys.job_key("j-1"), "x")
    else:
        redis.hset(keys.job_key("j-1"), mapping=cast("Any", fields))
    assert queue.take_job() is None
    assert remaining_job_keys(redis) == []
    assert redis.hgetall(keys.BUILDING) == {}


def test_a_huge_message_is_never_read(redis: Redis, queue: WorkerQueue, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("worker.queue.query_queue.MAX_MESSAGE_BYTES", 100)
    monkeypatch.setattr("worker.queue.job_queue.MAX_MESSAGE_BYTES", 100)
    send_query(redis)
    submit_job(redis)
    assert queue.queries.take() == []
    assert queue.take_job() is None
    assert (remaining_query_keys(redis), remaining_job_keys(redis), read_record(redis).state) == (
        [],
        [],
        "failed",
    )


def test_a_message_that_kills_its_readers_is_given_up_too(
    redis: Redis, make_queue: MakeQueue, monkeypatch: pytest.MonkeyPatch
):
    def die(raw: str) -> None:
        raise MemoryError

    submit_job(redis)
    monkeypatch.setattr(JOB_ADAPTER, "validate_json", die)
    for number in range(3):
        with pytest.raises(MemoryError):
            make_queue(f"w-{number}").take_job()
        expire_leases(redis)
    assert make_queue("w-3").take_job() is None
    assert "given up" in read_record(redis).model_dump_json()
