"""The queue after its Redis' clock has made a step, and after its Redis was restored from an older state."""

from collections.abc import Callable
from typing import cast

import pytest
from redis import Redis

from bergson_core.errors import LeaseLost
from tests.worker.clock import HOUR_S, step_clock
from tests.worker.helpers import (
    expire_leases,
    read_record,
    read_replies,
    send_query,
    submit_job,
    take_one_job,
    take_query_ids,
)
from worker.messages import Reply
from worker.queue import redis_keys as keys
from worker.queue.job_queue import WorkerQueue
from worker.settings import Settings

MakeQueue = Callable[[str], WorkerQueue]


def end_of_lease_ms(redis: Redis, leases: str, name: str) -> float:
    """Returns after how many ms the lease ends."""
    seconds, microseconds = cast("tuple[int, int]", redis.time())
    return cast("float", redis.zscore(leases, name)) - (1000 * seconds + microseconds / 1000)


def test_the_job_of_a_dead_worker_waits_one_lease_after_a_step_back(
    redis: Redis, settings: Settings, make_queue: MakeQueue
):
    submit_job(redis)
    take_one_job(make_queue("w-1"))
    step_clock(redis, -HOUR_S)
    assert make_queue("w-2").take_job() is None
    assert 0 < end_of_lease_ms(redis, keys.JOB_LEASES, "j-1") <= 1000 * settings.lease_s
    expire_leases(redis)
    assert take_one_job(make_queue("w-2")).record.deliveries == 2


def test_a_live_worker_keeps_its_job_through_a_step_back(redis: Redis, make_queue: MakeQueue):
    submit_job(redis)
    owner = make_queue("w-1")
    claim = take_one_job(owner)
    step_clock(redis, -HOUR_S)
    assert make_queue("w-2").take_job() is None
    owner.renew(claim)
    owner.finish(claim, "succeeded")
    assert read_record(redis).deliveries == 1


def test_a_job_handed_back_is_taken_at_once_after_a_step_back(redis: Redis, make_queue: MakeQueue):
    submit_job(redis)
    owner = make_queue("w-1")
    owner.hand_back(take_one_job(owner))
    step_clock(redis, -HOUR_S)
    assert take_one_job(make_queue("w-2")).record.deliveries == 1


def test_of_two_workers_that_have_a_job_after_a_step_forward_only_the_second_changes_it(
    redis: Redis, make_queue: MakeQueue
):
    submit_job(redis)
    first, second = make_queue("w-1"), make_queue("w-2")
    old = take_one_job(first)
    step_clock(redis, HOUR_S)
    new = take_one_job(second)
    for change in (first.renew, first.hand_back, lambda claim: first.finish(claim, "succeeded")):
        with pytest.raises(LeaseLost):
            change(old)
    second.finish(new, "succeeded")
    assert not redis.exists(keys.JOB_LEASES)


def test_the_query_of_a_dead_worker_waits_one_lease_after_a_step_back(
    redis: Redis, settings: Settings, make_queue: MakeQueue
):
    send_query(redis)
    assert take_query_ids(make_queue("w-1")) == ["q-1"]
    step_clock(redis, -HOUR_S)
    assert take_query_ids(make_queue("w-2")) == []
    assert 0 < end_of_lease_ms(redis, keys.QUERY_LEASES, "q-1") <= 1000 * settings.query_lease_s
    expire_leases(redis, keys.QUERY_LEASES)
    assert take_query_ids(make_queue("w-2")) == ["q-1"]


def test_a_query_that_two_workers_answer_after_a_step_forward_is_off_the_queue(
    redis: Redis, make_queue: MakeQueue
):
    first, second = make_queue("w-1"), make_queue("w-2")
    send_query(redis, timeout_s=2 * HOUR_S)
    (query,) = first.queries.take()
    step_clock(redis, HOUR_S)
    assert take_query_ids(second) == ["q-1"]
    for queue in (first, second):
        queue.queries.send_replies([(query, Reply(query_id="q-1"))])
    assert {reply.query_id for reply in read_replies(redis)} == {"q-1"}
    assert not redis.exists(keys.QUERY_LEASES)


@pytest.mark.parametrize("step_s", [-HOUR_S, HOUR_S])
def test_waiting_queries_are_taken_after_a_step(redis: Redis, queue: WorkerQueue, step_s: int):
    send_query(redis, "q-1", timeout_s=2 * HOUR_S)
    step_clock(redis, step_s)
    assert take_query_ids(queue) == ["q-1"]
    send_query(redis, "q-2")
    assert take_query_ids(queue) == ["q-2"]


def test_leases_start_anew_in_a_full_redis(redis: Redis, make_queue: MakeQueue):
    submit_job(redis)
    take_one_job(make_queue("w-1"))
    step_clock(redis, -HOUR_S)
    redis.config_set("maxmemory", 1)
    try:
        assert make_queue("w-2").take_job() is None
    finally:
        redis.config_set("maxmemory", 0)


def test_a_worker_whose_job_a_restored_redis_gave_to_another_changes_nothing(
    redis: Redis, make_queue: MakeQueue
):
    submit_job(redis)
    backup = {name: cast("bytes", redis.dump(name)) for name in cast("list[str]", redis.keys())}
    first, second = make_queue("w-1"), make_queue("w-2")
    old = take_one_job(first)
    redis.flushdb()
    for name, content in backup.items():
        redis.restore(name, 0, content)
    with pytest.raises(LeaseLost):
        first.renew(old)
    new = take_one_job(second)
    assert new.record.deliveries == 1
    with pytest.raises(LeaseLost):
        first.finish(old, "failed")
    second.renew(new)
    second.finish(new, "succeeded")
    assert read_record(redis).state == "succeeded"


def test_a_late_reply_to_another_command_drops_no_job(
    redis: Redis, queue: WorkerQueue, monkeypatch: pytest.MonkeyPatch
):
    submit_job(redis)
    read, replies = queue._read_record, [(None, 0, False)]
    monkeypatch.setattr(queue, "_read_record", lambda job_id: replies.pop() if replies else read(job_id))
    assert take_one_job(queue).job.job_id == "j-1"
