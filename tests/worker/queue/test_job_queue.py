"""The worker's side of the queue, against a real Redis. Time is not waited for: entries are made older."""

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, cast

import pytest
from redis import Redis

from bergson_core.errors import LeaseLost
from bergson_core.schemas.results import Progress
from tests.worker.fakes import spec
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
from worker.messages import Heartbeat, JobRecord, Problem, Query, Reply
from worker.queue import redis_keys as keys
from worker.queue.job_queue import MAX_JOB_EVENTS, ClaimedJob, WorkerQueue
from worker.queue.query_queue import RETENTION_S
from worker.queue.redis_keys import QUERY_LEASES, query_key
from worker.settings import Settings

MakeQueue = Callable[[str], WorkerQueue]


def taken_job(queue: WorkerQueue) -> ClaimedJob:
    claim = queue.take_job()
    assert claim is not None
    return claim


def taken_jobs(queue: WorkerQueue) -> list[str]:
    """Ids of all jobs that wait, in the order in which they are taken."""
    return [claim.job.job_id for claim in iter(queue.take_job, None)]


def refusal(redis: Redis) -> Problem:
    (reply,) = replies(redis)
    assert reply.problem is not None
    assert left(redis) == []
    return reply.problem


def test_a_reply_takes_the_query_off_the_queue(redis: Redis, queue: WorkerQueue):
    send(redis)
    (taken,) = queue.queries.take()
    queue.queries.send_replies(
        [(taken, Reply(query_id="q-1", problem=Problem(code="too_long", detail="99")))]
    )
    assert refusal(redis).code == "too_long"
    assert 0 < cast("int", redis.ttl(REPLY_TO)) <= RETENTION_S


def test_what_waits_forms_a_batch_up_to_the_bound(redis: Redis, queue: WorkerQueue):
    for number in range(6):
        send(redis, f"q-{number}")
    assert [len(queue.queries.take()) for _ in range(3)] == [4, 2, 0]


def test_what_a_person_waits_for_goes_before_a_batch_and_not_with_it(redis: Redis, queue: WorkerQueue):
    send(redis, "b-1", priority="batch")
    send(redis, "p-1")
    send(redis, "b-2", priority="batch")
    send(redis, "p-2")
    assert [taken_ids(queue) for _ in range(2)] == [["p-1", "p-2"], ["b-1", "b-2"]]


def test_callers_take_turns_however_much_one_of_them_asks(redis: Redis, queue: WorkerQueue):
    for number in range(6):
        send(redis, f"ada-{number}", lane="ada")
    send(redis, "bob-0", lane="bob")
    send(redis, "cy-0", lane="cy")
    assert set(taken_ids(queue)) == {"ada-0", "ada-1", "bob-0", "cy-0"}
    send(redis, "bob-1", lane="bob")
    assert "bob-1" in taken_ids(queue)


def test_who_asked_much_before_waits_no_longer_once_it_is_done(redis: Redis, queue: WorkerQueue):
    for number in range(8):
        send(redis, f"ada-{number}", lane="ada")
    while taken_ids(queue):
        pass
    send(redis, "bob-0", lane="bob")
    send(redis, "ada-8", lane="ada")
    send(redis, "bob-1", lane="bob")
    assert set(taken_ids(queue)) == {"ada-8", "bob-0", "bob-1"}


def test_a_worker_that_finds_nothing_waits_for_the_bell_once(redis: Redis, queue: WorkerQueue):
    for number in range(5):
        send(redis, f"q-{number}")
    assert [len(queue.queries.take(0.01)) for _ in range(3)] == [4, 1, 0]
    with ThreadPoolExecutor() as threads:
        found = threads.submit(queue.queries.take, 4)
        send(redis, "late")
        assert [query.query_id for query in found.result()] == ["late"]


def test_an_expired_query_is_dropped_without_an_answer(redis: Redis, queue: WorkerQueue):
    send(redis, timeout_s=-1)
    assert queue.queries.take() == []
    assert replies(redis) == []
    assert left(redis) == []


def test_a_query_of_a_killed_worker_is_redone_once_and_then_refused(redis: Redis, make_queue: MakeQueue):
    send(redis)
    assert len(make_queue("w-1").queries.take()) == 1
    assert make_queue("w-2").queries.take() == []
    let_lapse(redis, QUERY_LEASES)
    assert len(make_queue("w-2").queries.take()) == 1
    let_lapse(redis, QUERY_LEASES)
    assert make_queue("w-3").queries.take() == []
    assert "died" in refusal(redis).detail


def test_a_query_that_is_held_is_not_redone(redis: Redis, make_queue: MakeQueue):
    send(redis)
    first = make_queue("w-1")
    taken = first.queries.take()
    let_lapse(redis, QUERY_LEASES)
    first.queries.renew(taken)
    assert make_queue("w-2").queries.take() == []


def test_holding_a_query_that_was_answered_does_not_bring_it_back(redis: Redis, queue: WorkerQueue):
    send(redis)
    taken = queue.queries.take()
    queue.queries.send_replies([(taken[0], Reply(query_id="q-1"))])
    queue.queries.renew(taken)
    assert left(redis) == []


@pytest.mark.parametrize("taken", [True, False])
def test_a_query_that_redis_has_forgotten_is_dropped(redis: Redis, make_queue: MakeQueue, taken: bool):
    send(redis)
    if taken:
        make_queue("w-1").queries.take()
    redis.delete(query_key("q-1"))
    let_lapse(redis, QUERY_LEASES)
    assert make_queue("w-2").queries.take() == []
    assert left(redis) == []


def test_a_query_of_a_newer_schema_is_refused_to_its_sender(redis: Redis, queue: WorkerQueue):
    query = send(redis, "q-0")
    queue.queries.send_replies([(queue.queries.take()[0], Reply(query_id="q-0"))])
    redis.delete(REPLY_TO)
    send(redis, raw=query.model_dump_json().replace('"schema_version":3', '"schema_version":99'))
    assert queue.queries.take() == []
    problem = refusal(redis)
    assert problem.code == "invalid_input"
    assert "schema version 99" in problem.detail


@pytest.mark.parametrize(
    "message",
    [
        "no json",
        b"\xff\xfe",
        "[]",
        '{"query_id": "q-1", "reply_to": "bergson:jobs", "schema_version": 3}',
    ],
)
def test_a_message_that_nobody_can_be_told_about_is_dropped(redis: Redis, queue: WorkerQueue, message: Any):
    send(redis, raw=message)
    assert queue.queries.take() == []
    assert left(redis) == []
    assert not redis.exists(REPLY_TO, keys.JOB_LEASES + "x")
    assert jobs_left(redis) == []


def test_a_query_that_wants_its_answer_in_a_foreign_key_is_refused(redis: Redis, queue: WorkerQueue):
    send(redis, reply_to=keys.JOB_LEASES)
    assert queue.queries.take() == []
    assert jobs_left(redis) == []


def test_a_job_is_taken_by_one_worker_and_counted(redis: Redis, make_queue: MakeQueue):
    submit(redis)
    claim = taken_job(make_queue("w-1"))
    assert make_queue("w-2").take_job() is None
    assert claim.job.spec == spec()
    record = record_of(redis)
    assert (record.state, record.deliveries) == ("running", 1)
    assert record.started_at is not None


def test_jobs_of_a_caller_are_taken_in_the_order_of_submission(redis: Redis, queue: WorkerQueue):
    for number in range(12):
        submit(redis, f"j-{number}", f"i-{number}")
    assert taken_jobs(queue) == [f"j-{number}" for number in range(12)]


def test_callers_take_turns_however_many_jobs_one_of_them_submits(redis: Redis, queue: WorkerQueue):
    for number in range(5):
        submit(redis, f"ada-{number}", f"a-{number}", lane="ada")
    assert taken_job(queue).job.job_id == "ada-0"
    submit(redis, "bob-0", "b-0", lane="bob")
    submit(redis, "bob-1", "b-1", lane="bob")
    submit(redis, "cy-0", "c-0", lane="cy")
    assert taken_jobs(queue) == ["ada-1", "bob-0", "cy-0", "ada-2", "bob-1", "ada-3", "ada-4"]


def test_who_comes_back_is_last_in_line(redis: Redis, queue: WorkerQueue):
    submit(redis, "ada-0", "a-0", lane="ada")
    submit(redis, "bob-0", "b-0", lane="bob")
    assert taken_job(queue).job.job_id == "ada-0"
    submit(redis, "ada-1", "a-1", lane="ada")
    submit(redis, "cy-0", "c-0", lane="cy")
    assert taken_jobs(queue) == ["bob-0", "ada-1", "cy-0"]


def test_a_job_that_was_left_goes_before_those_that_wait(redis: Redis, make_queue: MakeQueue):
    submit(redis, "ada-0", "a-0", lane="ada")
    taken_job(make_queue("w-1"))
    submit(redis, "bob-0", "b-0", lane="bob")
    let_lapse(redis)
    assert taken_jobs(make_queue("w-2")) == ["ada-0", "bob-0"]


def test_a_line_whose_jobs_redis_has_forgotten_holds_nobody_up(redis: Redis, queue: WorkerQueue):
    submit(redis, "ada-0", "a-0", lane="ada")
    submit(redis, "bob-0", "b-0", lane="bob")
    redis.delete(keys.JOB_LANE_PREFIX + "ada")
    assert taken_jobs(queue) == ["bob-0"]


def test_a_killed_workers_job_goes_to_the_next_after_the_lease(redis: Redis, make_queue: MakeQueue):
    submit(redis)
    first = taken_job(make_queue("w-1"))
    let_lapse(redis)
    second = taken_job(make_queue("w-2"))
    assert second.job == first.job
    assert second.token > first.token
    assert record_of(redis).deliveries == 2


def test_a_long_job_that_is_renewed_is_not_stolen(redis: Redis, make_queue: MakeQueue):
    submit(redis)
    owner = make_queue("w-1")
    claim = taken_job(owner)
    let_lapse(redis)
    owner.renew(claim)
    assert make_queue("w-2").take_job() is None


def test_the_old_owner_of_a_stolen_job_changes_nothing(redis: Redis, make_queue: MakeQueue):
    submit(redis)
    owner, thief = make_queue("w-1"), make_queue("w-2")
    old = taken_job(owner)
    let_lapse(redis)
    new = taken_job(thief)
    before = record_of(redis)
    for attempt in (
        lambda: owner.renew(old),
        lambda: owner.publish_progress(old, Progress(stage="gradients", done=1, total=2)),
        lambda: owner.finish(old, "succeeded"),
        lambda: owner.hand_back(old),
    ):
        with pytest.raises(LeaseLost):
            attempt()
    with pytest.raises(LeaseLost):
        old.require_lease(1e9)
    assert record_of(redis) == before
    assert cast("float", redis.zscore(keys.JOB_LEASES, "j-1")) > 1000 * time.time()
    thief.finish(new, "succeeded")
    assert record_of(redis).state == "succeeded"


def test_an_owner_that_lost_its_job_to_the_dead_letters_changes_nothing(redis: Redis, make_queue: MakeQueue):
    submit(redis)
    owner = make_queue("w-1")
    claims = []
    for _ in range(3):
        claims.append(taken_job(owner))
        let_lapse(redis)
    assert make_queue("w-2").take_job() is None
    with pytest.raises(LeaseLost):
        owner.publish_progress(claims[-1], Progress(stage="gradients"))
    assert record_of(redis).state == "failed"


def test_a_lease_that_redis_did_not_renew_is_lost(redis: Redis, queue: WorkerQueue):
    submit(redis)
    claim = taken_job(queue)
    claim.require_lease(lease_s=60)
    with pytest.raises(LeaseLost, match="did not renew"):
        claim.require_lease(lease_s=0)


def test_a_job_whose_workers_died_three_times_is_given_up(redis: Redis, make_queue: MakeQueue):
    submit(redis)
    for number in range(3):
        taken_job(make_queue(f"w-{number}"))
        let_lapse(redis)
    assert make_queue("w-3").take_job() is None
    record = record_of(redis)
    assert record.state == "failed"
    assert record.error is not None
    assert "given up after 3 starts" in record.error.detail
    assert jobs_left(redis) == []


def test_a_job_handed_back_is_resumed_at_once_and_not_counted(redis: Redis, make_queue: MakeQueue):
    submit(redis)
    first = make_queue("w-1")
    claim = taken_job(first)
    first.hand_back(claim)
    assert record_of(redis).state == "queued"
    again = taken_job(make_queue("w-2"))
    assert (again.job, again.record.deliveries) == (claim.job, 1)


def test_a_job_handed_back_is_nobodys_until_it_is_taken(redis: Redis, queue: WorkerQueue):
    submit(redis)
    claim = taken_job(queue)
    queue.hand_back(claim)
    with pytest.raises(LeaseLost):
        queue.finish(claim, "succeeded")


@pytest.mark.parametrize("state", ["succeeded", "failed", "cancelled"])
def test_a_finished_job_frees_its_name_and_is_kept_for_a_while(
    redis: Redis, queue: WorkerQueue, settings: Settings, state: Any
):
    submit(redis)
    assert redis.hgetall(keys.BUILDING) == {"facts": "j-1"}
    queue.finish(taken_job(queue), state, Problem(code="internal", detail="x") if state == "failed" else None)
    assert record_of(redis).state == state
    assert redis.hgetall(keys.BUILDING) == {}
    assert not redis.hexists(keys.job_key("j-1"), "message")
    for key in (keys.job_key("j-1"), keys.events_key("j-1")):
        assert 0 < cast("int", redis.ttl(key)) <= settings.keep_jobs_s
    assert jobs_left(redis) == []


def test_the_wish_to_cancel_is_seen_with_the_next_progress(redis: Redis, queue: WorkerQueue):
    submit(redis)
    claim = taken_job(queue)
    queue.publish_progress(claim, Progress(stage="gradients"))
    assert not claim.cancelled
    redis.hset(keys.job_key("j-1"), "cancel", "1")
    queue.publish_progress(claim, Progress(stage="gradients"))
    assert claim.cancelled


def test_a_job_to_be_cancelled_whose_worker_died_is_not_started_again(redis: Redis, make_queue: MakeQueue):
    submit(redis)
    taken_job(make_queue("w-1"))
    redis.hset(keys.job_key("j-1"), "cancel", "1")
    let_lapse(redis)
    assert make_queue("w-2").take_job() is None
    assert record_of(redis).state == "cancelled"


def test_a_job_of_a_newer_schema_fails_with_what_to_do(redis: Redis, queue: WorkerQueue):
    submit(redis)
    redis.hset(keys.job_key("j-1"), "message", '{"kind": "build", "schema_version": 99}')
    assert queue.take_job() is None
    record = record_of(redis)
    assert record.error is not None
    assert "schema version 99" in record.error.detail


def test_a_job_that_redis_has_forgotten_is_dropped(redis: Redis, queue: WorkerQueue):
    submit(redis)
    redis.delete(keys.job_key("j-1"))
    assert queue.take_job() is None
    assert jobs_left(redis) == []


def test_a_job_of_a_redis_that_lost_everything_is_lost(redis: Redis, queue: WorkerQueue):
    submit(redis)
    claim = taken_job(queue)
    redis.flushdb()
    with pytest.raises(LeaseLost):
        queue.renew(claim)


def test_every_change_of_a_job_is_an_event(redis: Redis, queue: WorkerQueue):
    submit(redis)
    claim = taken_job(queue)
    queue.publish_progress(claim, Progress(stage="gradients", done=1, total=2))
    queue.finish(claim, "succeeded")
    entries = cast("list[tuple[str, dict[str, str]]]", redis.xrange(keys.events_key("j-1")))
    events = [JobRecord.model_validate_json(fields["record"]) for _, fields in entries]
    assert [(one.state, one.progress.done) for one in events] == [
        ("queued", 0),
        ("running", 0),
        ("running", 1),
        ("succeeded", 1),
    ]


def test_the_events_of_a_job_are_bounded(redis: Redis, queue: WorkerQueue):
    submit(redis)
    claim = taken_job(queue)
    for done in range(600):
        queue.publish_progress(claim, Progress(stage="gradients", done=done, total=600))
    assert cast("int", redis.xlen(keys.events_key("j-1"))) < 2 * MAX_JOB_EVENTS


def test_a_heartbeat_ends_by_itself_or_when_the_worker_leaves(
    redis: Redis, queue: WorkerQueue, settings: Settings
):
    beat = Heartbeat(worker_id="w-1", pid=1, host="h", device="cpu", started_at=0, state="idle")
    queue.send_heartbeat(beat)
    assert 0 < cast("int", redis.pttl(keys.worker_key("w-1"))) <= 1000 * settings.heartbeat_ttl_s
    queue.deregister()
    assert not redis.exists(keys.worker_key("w-1"), keys.WORKERS)


def test_what_was_sent_before_any_worker_existed_is_taken(
    redis: Redis, settings: Settings, make_queue: MakeQueue
):
    submit(redis)
    send(redis)
    queue = make_queue("w-1")
    assert isinstance(queue.queries.take()[0], Query)
    assert queue.take_job() is not None
