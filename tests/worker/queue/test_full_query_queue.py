"""A full or slow queue refuses the queries of those who have filled it, and still takes those of others."""

import json
import time
from typing import cast

import pytest
from redis import Redis

from bergson_core.errors import QueueFull
from tests.worker.fakes import make_query
from tests.worker.helpers import REPLY_TO, count_waiting
from worker.messages import Query, Reply
from worker.queue import lua_scripts
from worker.queue import redis_keys as keys
from worker.queue.query_queue import QueryQueue, ask_query_arguments
from worker.settings import Settings
from worker.telemetry.metrics import WorkerMetrics

SETTINGS = Settings(max_queued_queries=4, query_batch=1)


@pytest.fixture
def queries(redis: Redis) -> QueryQueue:
    return QueryQueue(redis, SETTINGS, WorkerMetrics())


def ask(redis: Redis, query_id: str, lane: str, settings: Settings = SETTINGS, raw: str = "") -> str:
    """Asks a query as a web process does, and returns what the script says; `raw` is sent as the message instead."""
    now = time.time()
    query = Query(
        query_id=query_id,
        reply_to=REPLY_TO,
        request_id="r",
        sent_at=now,
        deadline=now + 30,
        query=make_query(),
    )
    arguments = ask_query_arguments(query, lane, settings)
    if raw:
        arguments["args"][3] = raw
    return cast("str", redis.register_script(lua_scripts.ASK_QUERY)(**arguments))


def read_refusals(redis: Redis) -> dict[str, str]:
    """Returns the codes of the problems that were sent, by the ids of their queries."""
    entries = cast("list[tuple[str, dict[str, str]]]", redis.xrange(REPLY_TO))
    replies = [Reply.model_validate_json(fields["reply"]) for _, fields in entries]
    return {reply.query_id: reply.problem.code for reply in replies if reply.problem}


def read_waiting(redis: Redis) -> list[str]:
    return cast("list[str]", redis.zrange(keys.waiting_keys("interactive")[0], 0, -1))


def fill(redis: Redis, lane: str = "ada", count: int = 4) -> None:
    for number in range(1, count + 1):
        assert ask(redis, f"{lane}-{number}", lane) == "asked"


def test_who_has_filled_the_queue_is_refused(redis: Redis) -> None:
    fill(redis)
    assert ask(redis, "ada-5", "ada") == "full"
    assert read_waiting(redis) == ["ada-1", "ada-2", "ada-3", "ada-4"]
    assert not read_refusals(redis)


def test_a_query_of_another_key_takes_the_place_of_the_last_one(redis: Redis, queries: QueryQueue) -> None:
    fill(redis)
    assert ask(redis, "bob-1", "bob") == "asked"
    assert sorted(read_waiting(redis)) == ["ada-1", "ada-2", "ada-3", "bob-1"]
    assert read_refusals(redis) == {"ada-4": QueueFull.code}
    assert not redis.exists(keys.query_key("ada-4"))
    assert redis.zcard(keys.waiting_keys("interactive")[1]) == 4
    assert 0 < cast("int", redis.ttl(REPLY_TO)) <= 60
    taken = [query.query_id for _ in range(4) for query in queries.take()]
    assert sorted(taken[:2]) == ["ada-1", "bob-1"], "and it waits for one of them at most"


def test_keys_that_ask_a_lot_share_the_queue(redis: Redis) -> None:
    fill(redis)
    for number in range(1, 9):
        ask(redis, f"bob-{number}", "bob")
        ask(redis, f"ada-{10 + number}", "ada")
    lanes = [query_id.split("-")[0] for query_id in read_waiting(redis)]
    assert sorted(lanes) == ["ada", "ada", "bob", "bob"]


def test_a_queue_that_is_full_of_queries_at_work_takes_no_other(redis: Redis, queries: QueryQueue) -> None:
    fill(redis)
    for _ in range(4):
        queries.take()
    assert ask(redis, "bob-1", "bob") == "full"
    assert not read_refusals(redis)


@pytest.mark.parametrize("waiting_messages", [1, 4])
def test_a_slow_queue_refuses_those_who_would_come_after_its_oldest_query(
    redis: Redis, waiting_messages: int
) -> None:
    settings = Settings(max_queued_queries=100, max_queue_wait_s=0.01)
    fill(redis, count=waiting_messages)
    time.sleep(0.05)
    assert ask(redis, "ada-9", "ada", settings) == "slow"


def test_a_slow_queue_takes_queries_that_go_before_its_oldest_one(redis: Redis, queries: QueryQueue) -> None:
    settings = Settings(max_queued_queries=100, max_queue_wait_s=0.01)
    fill(redis)
    queries.take()
    time.sleep(0.05)
    assert ask(redis, "ada-9", "ada", settings) == "slow"
    assert ask(redis, "bob-1", "bob", settings) == "asked"
    assert read_waiting(redis)[0] == "bob-1"


@pytest.mark.parametrize(
    "raw",
    [
        "{",
        "[]",
        "null",
        "1",
        '"text"',
        '{"reply_to": null}',
        '{"reply_to": 5}',
        '{"reply_to": "elsewhere"}',
        '{"reply_to": {"a": 1}}',
        "[" * 2000,
        json.dumps({"query_id": "x", "reply_to": "bergson:queries:bell"}),
    ],
)
def test_a_message_that_cannot_be_read_makes_room_without_a_reply(redis: Redis, raw: str) -> None:
    fill(redis, count=3)
    assert ask(redis, "ada-4", "ada", raw=raw) == "asked"
    assert ask(redis, "bob-1", "bob") == "asked"
    assert count_waiting(redis) == 4 and "ada-4" not in read_waiting(redis)
    assert not read_refusals(redis)
    assert not redis.exists("elsewhere")


@pytest.mark.parametrize("damage", ["delete", "string"])
def test_a_waiting_id_without_a_query_makes_room(redis: Redis, damage: str) -> None:
    fill(redis)
    redis.delete(keys.query_key("ada-4"))
    if damage == "string":
        redis.set(keys.query_key("ada-4"), "x")
    assert ask(redis, "bob-1", "bob") == "asked"
    assert sorted(read_waiting(redis)) == ["ada-1", "ada-2", "ada-3", "bob-1"]


def test_a_key_whose_queries_were_withdrawn_is_not_refused_for_them(redis: Redis) -> None:
    assert ask(redis, "bob-1", "bob") == "asked"
    for number in range(20):
        assert ask(redis, f"ada-{number}", "ada") == "asked"
        for key in keys.waiting_keys("interactive")[:2]:
            redis.zrem(key, f"ada-{number}")
        redis.delete(keys.query_key(f"ada-{number}"))
    assert ask(redis, "ada-21", "ada") == "asked"
