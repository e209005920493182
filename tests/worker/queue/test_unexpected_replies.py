"""A reply to another command, which a connection out of step may give, is an error of Redis, not of the worker."""

from typing import Any

import pytest
from redis import Redis

from tests.worker.helpers import read_record, submit_job
from worker.messages import Heartbeat
from worker.queue.job_queue import WorkerQueue
from worker.queue.redis_errors import UnexpectedReply, require_list, unavailable_error


@pytest.mark.parametrize("reply", [7, ["a", "b"], {"a": "b"}])
def test_a_job_is_neither_taken_nor_lost_by_an_unexpected_reply(
    redis: Redis, queue: WorkerQueue, monkeypatch: pytest.MonkeyPatch, reply: Any
):
    submit_job(redis)
    with monkeypatch.context() as patch:
        patch.setattr(queue, "_take_script", lambda **_: reply)
        with pytest.raises(UnexpectedReply):
            queue.take_job()
    claim = queue.take_job()
    assert claim is not None
    with monkeypatch.context() as patch:
        patch.setattr(queue, "_save_script", lambda **_: reply)
        with pytest.raises(UnexpectedReply):
            queue.finish(claim, "succeeded")
    queue.finish(claim, "succeeded")
    assert read_record(redis).state == "succeeded"


@pytest.mark.parametrize("reply", ["q-1", 7, ["q-1", "{}"], ["q-1", "{}", "many"]])
def test_queries_are_not_read_from_an_unexpected_reply(
    queue: WorkerQueue, monkeypatch: pytest.MonkeyPatch, reply: Any
):
    monkeypatch.setattr(queue.queries, "_take_script", lambda **_: reply)
    with pytest.raises(UnexpectedReply):
        queue.queries.take()


def test_an_error_of_redis_py_about_a_reply_is_one_of_redis(
    queue: WorkerQueue, monkeypatch: pytest.MonkeyPatch
):
    def raise_error() -> None:
        raise TypeError("'int' object is not iterable")

    monkeypatch.setattr(queue._redis, "pipeline", raise_error)
    heartbeat = Heartbeat(worker_id="w-1", pid=1, host="h", device="cpu", started_at=0, state="idle")
    with pytest.raises(UnexpectedReply) as raised:
        queue.send_heartbeat(heartbeat)
    assert str(unavailable_error(raised.value)).startswith("Redis sends what cannot be read")


def test_a_list_is_required_to_have_its_length():
    assert require_list(["a"], length=1) == ["a"]
    for reply in ("ab", None, ["a"], {"a": "b", "c": "d"}):
        with pytest.raises(UnexpectedReply):
            require_list(reply, length=2)
