"""The worker's side of the queue, with a real Redis. No test waits for a lease to end: its end is moved to the past."""

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, cast

import pytest
from redis import Redis

from bergson_core.errors import LeaseLost
from bergson_core.schemas.results import Progress
from tests.worker.fakes import make_spec
from tests.worker.helpers import (
    REPLY_TO,
    expire_leases,
    read_record,
    read_replies,
    remaining_job_keys,
    remaining_query_keys,
    send_query,
    submit_job,
    take_one_job,
    take_query_ids,
)
from worker.messages import SCHEMA_VERSION, Heartbeat, JobRecord, Query, Reply
from worker.problem import Problem
from worker.queue import redis_keys as keys
from worker.queue.job_queue import WorkerQueue
from worker.queue.job_records import MAX_JOB_EVENTS
from worker.queue.query_queue import RETENTION_S
from worker.queue.redis_keys import QUERY_LEASES, query_key
from worker.settings import Settings

MakeQueue = Callable[[str], WorkerQueue]


def take_all_job_ids(queue: WorkerQueue) -> list[str]:
    """Takes all waiting jobs and returns their ids in the order in which they were taken."""
    return [claim.job.job_id for claim in iter(queue.take_job, None)]


def read_refusal(redis: Redis) -> Problem:
    (reply,) = read_replies(redis)
    assert reply.problem is not None
    assert remaining_query_keys(redis) == []
    return reply.problem


def test_a_reply_takes_the_query_off_the_queue(redis: Redis, queue: WorkerQueue):
    send_query(redis)
    (taken,) = queue.queries.take()
    queue.queries.send_replies(
        [(taken, Reply(query_id="q-1", problem=Problem(code="too_long", detail="99")))]
    )
    assert read_refusal(redis).code == "too_long"
    assert 0 < cast("int", redis.ttl(REPLY_TO)) <= RETENTION_S


def test_waiting_queries_are_taken_in_batches_up_to_the_bound(redis: Redis, queue: WorkerQueue):
    for number in range(6):
        send_query(redis, f"q-{number}")
    assert [len(queue.queries.take()) for _ in range(3)] == [4, 2, 0]


def test_interactive_queries_are_taken_before_batch_queries_and_apart_from_them(
    redis: Redis, queue: WorkerQueue
):
    send_query(redis, "b-1", priority="batch")
    send_query(redis, "p-1")
    send_query(redis, "b-2", priority="batch")
    send_query(redis, "p-2")
    assert [take_query_ids(queue) for _ in range(2)] == [["p-1", "p-2"], ["b-1", "b-2"]]


def test_callers_take_turns_however_much_one_of_them_asks(redis: Redis, queue: WorkerQueue):
    for number in range(6):
        send_query(redis, f"ada-{number}", lane="ada")
    send_query(redis, "bob-0", lane="bob")
    send_query(redis, "cy-0", lane="cy")
    assert set(take_query_ids(queue)) == {"ada-0", "ada-1", "bob-0", "cy-0"}
    send_query(redis, "bob-1", lane="bob")
    assert "bob-1" in take_query_ids(queue)


def test_a_caller_whose_many_queries_are_done_waits_no_longer_than_others(redis: Redis, queue: WorkerQueue):
    for number in range(8):
        send_query(redis, f"ada-{number}", lane="ada")
    while take_query_ids(queue):
        pass
    send_query(redis, "bob-0", lane="bob")
    send_query(redis, "ada-8", lane="ada")
    send_query(redis, "bob-1", lane="bob")
    assert set(take_query_ids(queue)) == {"ada-8", "bob-0", "bob-1"}


def test_only_a_new_query_wakes_an_idle_worker(redis: Redis, queue: WorkerQueue):
    for number in range(5):
        send_query(redis, f"q-{number}")
    assert [len(queue.queries.take(0.01)) for _ in range(3)] == [4, 1, 0]
    with ThreadPoolExecutor() as threads:
        taken = threads.submit(queue.queries.take, 4)
        send_query(redis, "late")
        assert [query.query_id for query in taken.result()] == ["late"]


def test_an_expired_query_is_dropped_without_an_answer(redis: Redis, queue: WorkerQueue):
    send_query(redis, timeout_s=-1)
    assert queue.queries.take() == []
    assert read_replies(redis) == []
    assert remaining_query_keys(redis) == []


def test_a_query_of_a_killed_worker_is_redone_once_and_then_refused(redis: Redis, make_queue: MakeQueue):
    send_query(redis)
    assert len(make_queue("w-1").queries.take()) == 1
    assert make_queue("w-2").queries.take() == []
    expire_leases(redis, QUERY_LEASES)
    assert len(make_queue("w-2").queries.take()) == 1
    expire_leases(redis, QUERY_LEASES)
    assert make_queue("w-3").queries.take() == []
    assert "died" in read_refusal(redis).detail


def test_a_query_whose_lease_is_renewed_is_not_taken_again(redis: Redis, make_queue: MakeQueue):
    send_query(redis)
    first = make_queue("w-1")
    taken = first.queries.take()
    expire_leases(redis, QUERY_LEASES)
    first.queries.renew(taken)
    assert make_queue("w-2").queries.take() == []


def test_renewing_the_lease_of_an_answered_query_does_not_bring_it_back(redis: Redis, queue: WorkerQueue):
    send_query(redis)
    taken = queue.queries.take()
    queue.queries.send_replies([(taken[0], Reply(query_id="q-1"))])
    queue.queries.renew(taken)
    assert remaining_query_keys(redis) == []


@pytest.mark.parametrize("taken", [True, False])
def test_a_query_that_has_expired_in_redis_is_dropped(redis: Redis, make_queue: MakeQueue, taken: bool):
    send_query(redis)
    if taken:
        make_queue("w-1").queries.take()
    redis.delete(query_key("q-1"))
    expire_leases(redis, QUERY_LEASES)
    assert make_queue("w-2").queries.take() == []
    assert remaining_query_keys(redis) == []


def test_a_query_of_a_newer_schema_is_refused_to_its_sender(redis: Redis, queue: WorkerQueue):
    query = send_query(redis, "q-0")
    queue.queries.send_replies([(queue.queries.take()[0], Reply(query_id="q-0"))])
    redis.delete(REPLY_TO)
    send_query(
        redis,
        raw=query.model_dump_json().replace(f'"schema_version":{SCHEMA_VERSION}', '"schema_version":99'),
    )
    assert queue.queries.take() == []
    problem = read_refusal(redis)
    assert problem.code == "invalid_input"
    assert "schema version 99" in problem.detail


@pytest.mark.parametrize(
    "message",
    [
        "no json",
        b"\xff\xfe",
        "[]",
        '{"query_id": "q-1", "reply_to": "bergson:jobs", "schema_version": 4}',
    ],
)
def test_an_unreadable_message_without_a_stream_for_the_reply_is_dropped(
    redis: Redis, queue: WorkerQueue, message: Any
):
    send_query(redis, raw=message)
    assert queue.queries.take() == []
    assert remaining_query_keys(redis) == []
    assert not redis.exists(REPLY_TO, keys.JOB_LEASES + "x")
    assert remaining_job_keys(redis) == []


def test_a_query_with_another_key_as_its_stream_of_replies_is_refused(redis: Redis, queue: WorkerQueue):
    send_query(redis, reply_to=keys.JOB_LEASES)
    assert queue.queries.take() == []
    assert remaining_job_keys(redis) == []


def test_a_job_is_taken_by_one_worker_and_its_delivery_is_counted(redis: Redis, make_queue: MakeQueue):
    submit_job(redis)
    claim = take_one_job(make_queue("w-1"))
    assert make_queue("w-2").take_job() is None
    assert claim.job.spec == make_spec()
    record = read_record(redis)
    assert (record.state, record.deliveries) == ("running", 1)
    assert record.started_at is not None


def test_jobs_of_a_caller_are_taken_in_the_order_of_submission(redis: Redis, queue: WorkerQueue):
    for number in range(12):
        submit_job(redis, f"j-{number}", f"i-{number}")
    assert take_all_job_ids(queue) == [f"j-{number}" for number in range(12)]


def test_callers_take_turns_however_many_jobs_one_of_them_submits(redis: Redis, queue: WorkerQueue):
    for number in range(5):
        submit_job(redis, f"ada-{number}", f"a-{number}", lane="ada")
    assert take_one_job(queue).job.job_id == "ada-0"
    submit_job(redis, "bob-0", "b-0", lane="bob")
    submit_job(redis, "bob-1", "b-1", lane="bob")
    submit_job(redis, "cy-0", "c-0", lane="cy")
    assert take_all_job_ids(queue) == ["ada-1", "bob-0", "cy-0", "ada-2", "bob-1", "ada-3", "ada-4"]


def test_a_lane_that_had_its_turn_goes_to_the_end_of_the_line(redis: Redis, queue: WorkerQueue):
    submit_job(redis, "ada-0", "a-0", lane="ada")
    submit_job(redis, "bob-0", "b-0", lane="bob")
    assert take_one_job(queue).job.job_id == "ada-0"
    submit_job(redis, "ada-1", "a-1", lane="ada")
    submit_job(redis, "cy-0", "c-0", lane="cy")
    assert take_all_job_ids(queue) == ["bob-0", "ada-1", "cy-0"]


def test_a_job_whose_lease_has_ended_goes_before_waiting_jobs(redis: Redis, make_queue: MakeQueue):
    submit_job(redis, "ada-0", "a-0", lane="ada")
    take_one_job(make_queue("w-1"))
    submit_job(redis, "bob-0", "b-0", lane="bob")
    expire_leases(redis)
    assert take_all_job_ids(make_queue("w-2")) == ["ada-0", "bob-0"]


def test_a_lane_whose_jobs_are_gone_from_redis_holds_nobody_up(redis: Redis, queue: WorkerQueue):
    submit_job(redis, "ada-0", "a-0", lane="ada")
    submit_job(redis, "bob-0", "b-0", lane="bob")
    redis.delete(keys.JOB_LANE_PREFIX + "ada")
    assert take_all_job_ids(queue) == ["bob-0"]


def test_the_job_of_a_killed_worker_goes_to_the_next_worker_after_the_lease(
    redis: Redis, make_queue: MakeQueue
):
    submit_job(redis)
    first = take_one_job(make_queue("w-1"))
    expire_leases(redis)
    second = take_one_job(make_queue("w-2"))
    assert second.job == first.job
    assert second.token > first.token
    assert read_record(redis).deliveries == 2


def test_a_job_whose_lease_is_renewed_is_not_taken_over(redis: Redis, make_queue: MakeQueue):
    submit_job(redis)
    owner = make_queue("w-1")
    claim = take_one_job(owner)
    expire_leases(redis)
    owner.renew(claim)
    assert make_queue("w-2").take_job() is None


def test_a_worker_whose_job_was_taken_over_changes_nothing(redis: Redis, make_queue: MakeQueue):
    submit_job(redis)
    first, second = make_queue("w-1"), make_queue("w-2")
    old = take_one_job(first)
    expire_leases(redis)
    new = take_one_job(second)
    before = read_record(redis)
    for change in (
        lambda: first.renew(old),
        lambda: first.publish_progress(old, Progress(stage="gradients", done=1, total=2)),
        lambda: first.finish(old, "succeeded"),
        lambda: first.hand_back(old),
    ):
        with pytest.raises(LeaseLost):
            change()
    with pytest.raises(LeaseLost):
        old.require_lease(1e9)
    assert read_record(redis) == before
    assert cast("float", redis.zscore(keys.JOB_LEASES, "j-1")) > 1000 * time.time()
    second.finish(new, "succeeded")
    assert read_record(redis).state == "succeeded"


def test_a_worker_whose_job_was_given_up_changes_nothing(redis: Redis, make_queue: MakeQueue):
    submit_job(redis)
    owner = make_queue("w-1")
    claims = []
    for _ in range(3):
        claims.append(take_one_job(owner))
        expire_leases(redis)
    assert make_queue("w-2").take_job() is None
    with pytest.raises(LeaseLost):
        owner.publish_progress(claims[-1], Progress(stage="gradients"))
    assert read_record(redis).state == "failed"


def test_a_lease_that_redis_did_not_renew_is_lost(redis: Redis, queue: WorkerQueue):
    submit_job(redis)
    claim = take_one_job(queue)
    claim.require_lease(lease_s=60)
    with pytest.raises(LeaseLost, match="did not renew"):
        claim.require_lease(lease_s=0)


def test_a_job_whose_workers_died_three_times_is_given_up(redis: Redis, make_queue: MakeQueue):
    submit_job(redis)
    for number in range(3):
        take_one_job(make_queue(f"w-{number}"))
        expire_leases(redis)
    assert make_queue("w-3").take_job() is None
    record = read_record(redis)
    assert record.state == "failed"
    assert record.error is not None
    assert "given up after 3 starts" in record.error.detail
    assert remaining_job_keys(redis) == []


def test_a_job_handed_back_is_resumed_at_once_and_not_counted(redis: Redis, make_queue: MakeQueue):
    submit_job(redis)
    first = make_queue("w-1")
    claim = take_one_job(first)
    first.hand_back(claim)
    assert read_record(redis).state == "queued"
    again = take_one_job(make_queue("w-2"))
    assert (again.job, again.record.deliveries) == (claim.job, 1)


def test_a_job_handed_back_is_nobodys_until_it_is_taken(redis: Redis, queue: WorkerQueue):
    submit_job(redis)
    claim = take_one_job(queue)
    queue.hand_back(claim)
    with pytest.raises(LeaseLost):
        queue.finish(claim, "succeeded")


@pytest.mark.parametrize("state", ["succeeded", "failed", "cancelled"])
def test_a_finished_job_frees_its_name_and_is_kept_for_a_while(
    redis: Redis, queue: WorkerQueue, settings: Settings, state: Any
):
    submit_job(redis)
    assert redis.hgetall(keys.BUILDING) == {"facts": "j-1"}
    queue.finish(
        take_one_job(queue), state, Problem(code="internal", detail="x") if state == "failed" else None
    )
    assert read_record(redis).state == state
    assert redis.hgetall(keys.BUILDING) == {}
    assert not redis.hexists(keys.job_key("j-1"), "message")
    for key in (keys.job_key("j-1"), keys.events_key("j-1")):
        assert 0 < cast("int", redis.ttl(key)) <= settings.keep_jobs_s
    assert remaining_job_keys(redis) == []


def test_an_error_that_quotes_what_the_caller_has_sent_is_kept_short(redis: Redis, queue: WorkerQueue):
    submit_job(redis)
    detail = f"expected a column, got {'x' * 10**6}: name one of 'text'"
    queue.finish(take_one_job(queue), "failed", Problem(code="column_not_found", detail=detail))
    error = read_record(redis).error
    assert error is not None
    assert len(error.detail) < 11_000
    assert error.detail.startswith("expected a column, got xx")
    assert error.detail.endswith("xx: name one of 'text'")
    assert "characters left out" in error.detail


def test_of_jobs_that_have_ended_the_latest_are_kept(redis: Redis, settings: Settings):
    queue = WorkerQueue(redis, settings.model_copy(update={"keep_jobs": 2}), "w-1")
    for number in range(1, 5):
        submit_job(redis, f"j-{number}")
        queue.finish(take_one_job(queue), "succeeded")
    submit_job(redis, "j-5")
    assert [redis.exists(keys.job_key(f"j-{number}")) for number in range(1, 6)] == [0, 0, 1, 1, 1]
    assert not redis.exists(keys.events_key("j-1"), keys.events_key("j-2"))
    assert redis.lrange(keys.ENDED_JOBS, 0, -1) == ["j-3", "j-4"]
    assert redis.zrange(keys.JOBS_BY_CREATION, 0, -1) == ["j-3", "j-4", "j-5"]


def test_a_request_to_cancel_is_seen_with_the_next_progress(redis: Redis, queue: WorkerQueue):
    submit_job(redis)
    claim = take_one_job(queue)
    queue.publish_progress(claim, Progress(stage="gradients"))
    assert not claim.cancelled
    redis.hset(keys.job_key("j-1"), "cancel", "1")
    queue.publish_progress(claim, Progress(stage="gradients"))
    assert claim.cancelled


def test_a_job_to_be_cancelled_whose_worker_died_is_not_started_again(redis: Redis, make_queue: MakeQueue):
    submit_job(redis)
    take_one_job(make_queue("w-1"))
    redis.hset(keys.job_key("j-1"), "cancel", "1")
    expire_leases(redis)
    assert make_queue("w-2").take_job() is None
    assert read_record(redis).state == "cancelled"


def test_what_a_job_left_that_was_started_is_discarded_before_its_end_is_recorded(
    redis: Redis, make_queue: MakeQueue
):
    submit_job(redis)
    make_queue("killed").take_job()
    expire_leases(redis)
    redis.hset(keys.job_key("j-1"), "cancel", "1")
    states: list[str] = []
    make_queue("next").take_job(discard=lambda record: states.append(read_record(redis).state))
    assert states == ["running"]


def test_a_job_with_an_obstacle_is_put_off_without_a_start_and_others_are_taken(
    redis: Redis, make_queue: MakeQueue
):
    for number in range(6):
        submit_job(redis, f"j-{number}", f"index-{number}")
    started, queue = make_queue("frozen").take_job(), make_queue("next")
    assert started is not None
    expire_leases(redis)

    def find_obstacle(record: JobRecord) -> str | None:
        return "another process" if record.job_id < "j-3" else None

    taken = [claim.record.job_id for claim in iter(lambda: queue.take_job(find_obstacle), None)]
    assert taken == ["j-3", "j-4", "j-5"]
    for number in range(3):
        record = read_record(redis, f"j-{number}")
        assert (record.state, record.waits_for) == ("queued", "another process")
        assert record.deliveries == (number == 0)  # the start of the frozen worker
    expire_leases(redis)
    events = redis.xlen(keys.events_key("j-0"))
    assert queue.take_job(lambda record: "another process") is None
    assert redis.xlen(keys.events_key("j-0")) == events
    expire_leases(redis)
    claim = queue.take_job()
    assert claim is not None
    assert (claim.record.waits_for, read_record(redis, claim.record.job_id).waits_for) == (None, None)


def test_a_frozen_worker_whose_job_waits_for_it_may_hand_it_back_or_go_on(
    redis: Redis, make_queue: MakeQueue
):
    submit_job(redis)
    frozen, other = make_queue("frozen"), make_queue("other")
    for _ in range(5):
        claim = frozen.take_job()
        assert claim is not None
        expire_leases(redis)
        assert other.take_job(lambda record: "frozen") is None
        frozen.renew(claim)
        assert other.take_job() is None
        frozen.hand_back(claim)
    claim = other.take_job()
    assert claim is not None and claim.record.deliveries == 1


def test_a_job_of_a_newer_schema_fails_and_says_what_to_do(redis: Redis, queue: WorkerQueue):
    submit_job(redis)
    redis.hset(keys.job_key("j-1"), "message", '{"kind": "build", "schema_version": 99}')
    assert queue.take_job() is None
    record = read_record(redis)
    assert record.error is not None
    assert "schema version 99" in record.error.detail


def test_a_job_that_is_gone_from_redis_is_dropped(redis: Redis, queue: WorkerQueue):
    submit_job(redis)
    redis.delete(keys.job_key("j-1"))
    assert queue.take_job() is None
    assert remaining_job_keys(redis) == []


def test_a_job_is_lost_when_redis_loses_its_data(redis: Redis, queue: WorkerQueue):
    submit_job(redis)
    claim = take_one_job(queue)
    redis.flushdb()
    with pytest.raises(LeaseLost):
        queue.renew(claim)


def test_every_change_of_a_job_is_an_event(redis: Redis, queue: WorkerQueue):
    submit_job(redis)
    claim = take_one_job(queue)
    queue.publish_progress(claim, Progress(stage="gradients", done=1, total=2))
    queue.finish(claim, "succeeded")
    entries = cast("list[tuple[str, dict[str, str]]]", redis.xrange(keys.events_key("j-1")))
    events = [JobRecord.model_validate_json(fields["record"]) for _, fields in entries]
    assert [(event.state, event.progress.done) for event in events] == [
        ("queued", 0),
        ("running", 0),
        ("running", 1),
        ("succeeded", 1),
    ]


def test_the_events_of_a_job_are_bounded(redis: Redis, queue: WorkerQueue):
    submit_job(redis)
    claim = take_one_job(queue)
    for done in range(600):
        queue.publish_progress(claim, Progress(stage="gradients", done=done, total=600))
    assert cast("int", redis.xlen(keys.events_key("j-1"))) < 2 * MAX_JOB_EVENTS


def test_a_heartbeat_expires_or_ends_when_the_worker_deregisters(
    redis: Redis, queue: WorkerQueue, settings: Settings
):
    heartbeat = Heartbeat(worker_id="w-1", pid=1, host="h", device="cpu", started_at=0, state="idle")
    queue.send_heartbeat(heartbeat)
    assert 0 < cast("int", redis.pttl(keys.worker_key("w-1"))) <= 1000 * settings.heartbeat_ttl_s
    queue.deregister()
    assert not redis.exists(keys.worker_key("w-1"), keys.WORKERS)


def test_a_query_and_a_job_that_were_sent_before_any_worker_existed_are_taken(
    redis: Redis, settings: Settings, make_queue: MakeQueue
):
    submit_job(redis)
    send_query(redis)
    queue = make_queue("w-1")
    assert isinstance(queue.queries.take()[0], Query)
    assert queue.take_job() is not None
