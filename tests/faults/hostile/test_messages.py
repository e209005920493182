"""What lies in Redis and says something else than it should has one end, and holds up nothing behind it."""

import asyncio
import json
from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import Any, cast

from fastapi.testclient import TestClient
from hypothesis import given, seed
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families
from redis import Redis

from bergson_core.errors import BergsonError
from bergson_core.schemas.results import Answer
from service.app import create_app
from service.openapi import examples as openapi_examples
from service.queue.broker import Broker
from service.settings import ServiceSettings
from tests.faults.support.hostile_bodies import examples, require_no_failure
from tests.faults.support.hostile_files import apply_change, damaged_texts, hostile_changes, hostile_values
from tests.worker.fakes import FakeCore, make_query, make_spec, publish_index
from tests.worker.helpers import (
    REPLY_TO,
    read_record,
    remaining_job_keys,
    remaining_query_keys,
    send_query,
    submit_job,
    wait_until,
    wait_until_async,
)
from worker.messages import FINAL_STATES, JOB_ADAPTER, BuildJob, Heartbeat, JobRecord, Query, Reply
from worker.process.runner import Runner
from worker.queue import redis_keys as keys
from worker.queue.query_queue import parse_fields
from worker.settings import Settings

NOW = 1.7e9
FAR = 4e9
QUERY = Query(
    query_id="q-bad", reply_to=REPLY_TO, request_id="r", sent_at=NOW, deadline=FAR, query=make_query()
)
JOB = BuildJob(job_id="j-bad", index="bad", spec=make_spec(), request_id="r")
RECORD = JobRecord(job_id="j-bad", kind="build", index="bad", state="queued", created_at=NOW)
HEARTBEAT = Heartbeat.model_validate(
    {"worker_id": "w-bad", "pid": 1, "host": "h", "device": "cpu", "started_at": NOW, "state": "idle"}
    | {"models": [{"model": "m", "dtype": "float32", "sha256": "0", "parameters": 1, "indexes": ["facts"]}]}
    | {"metrics": [{"name": "bergson_x", "kind": "gauge", "help": "X.", "samples": [["", {"a": "b"}, 1.0]]}]}
)
ANSWER = {name: value for name, value in openapi_examples.ATTRIBUTE_RESPONSE.items() if name != "request_id"}
REPLY = Reply(query_id="q-bad", answer=Answer.model_validate(ANSWER))
TOKENS = st.sampled_from(["05", " 5", "+5", "5_0", "-1", "x", "", "1e3", "٥", "9" * 5000, str(2**70)])


def changed(model: Any, schema: dict[str, Any]) -> st.SearchStrategy[bytes]:
    """Returns a strategy of what a message may be changed into."""
    fields = json.loads(model.model_dump_json())
    changes = hostile_changes(schema).map(lambda change: apply_change(fields, change).encode())
    return changes | changes | damaged_texts(model.model_dump_json())


def test_a_changed_query_gets_one_end_and_the_next_one_its_answer(
    redis: Redis, start_worker: Callable[[], Runner], settings: Settings, long_form: bool
) -> None:
    publish_index(settings.indexes_dir / "facts")
    start_worker()

    @seed(0)
    @examples(40, long_form)
    @given(changed(QUERY, Query.model_json_schema()), st.none() | TOKENS)
    def check(raw: bytes, deliveries: str | None) -> None:
        with redis.pipeline() as pipe:
            if deliveries is not None:
                pipe.hset(keys.query_key("q-bad"), "deliveries", deliveries)
            pipe.execute()
        send_query(redis, "q-bad", raw=raw)
        send_query(redis, "q-good")
        wait_until(lambda: "q-good" in reply_ids(redis) and not remaining_query_keys(redis))
        replied = reply_ids(redis)
        assert replied.count("q-good") == 1
        assert replied.count("q-bad") <= 1
        fields = parse_fields(raw.decode(errors="replace"))
        if fields.get("reply_to") == REPLY_TO and fields.get("deadline") == FAR:
            assert replied.count("q-bad") == 1
        redis.flushdb()

    check()


def reply_ids(redis: Redis) -> list[str]:
    streams = [redis.xrange(name) for name in cast("list[str]", redis.keys(f"{keys.REPLIES_PREFIX}*"))]
    entries = [fields for stream in streams for _, fields in cast("list[Any]", stream)]
    return [Reply.model_validate_json(fields["reply"]).query_id for fields in entries]


JOB_FIELDS = st.one_of(
    st.tuples(st.just("message"), changed(JOB, JOB_ADAPTER.json_schema())),
    st.tuples(st.just("record"), changed(RECORD, JobRecord.model_json_schema())),
    st.tuples(
        st.just("record"),
        st.tuples(st.just(("index",)), hostile_values).map(
            lambda change: apply_change(json.loads(RECORD.model_dump_json()), change).encode()
        ),
    ),
    st.tuples(st.just("token"), TOKENS.map(str.encode)),
    st.tuples(st.just("lane"), st.binary(max_size=5)),
)


def test_a_changed_job_gets_one_end_and_the_next_one_is_done(
    redis: Redis,
    start_worker: Callable[[], Runner],
    settings: Settings,
    core: FakeCore,
    tmp_path: Path,
    long_form: bool,
) -> None:
    core.total = 1
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "building.json").touch()
    start_worker()
    numbers = count()

    @seed(0)
    @examples(40, long_form)
    @given(JOB_FIELDS, st.none() | st.just("1"), st.booleans())
    def check(field: tuple[str, bytes], cancel: str | None, started: bool) -> None:
        good, (name, value) = f"j-{next(numbers)}", field
        with redis.pipeline() as pipe:
            submit_job(cast("Any", pipe), "j-bad", index="bad")
            record = RECORD.model_copy(update={"started_at": NOW if started else None})
            fields = {"record": record.model_dump_json(), name: value} | (
                {"cancel": cancel} if cancel else {}
            )
            pipe.hset(keys.job_key("j-bad"), mapping=cast("Any", fields))
            submit_job(cast("Any", pipe), good, index=good)
            pipe.execute()
        wait_until(lambda: read_record(redis, good).state == "succeeded" and not remaining_job_keys(redis))
        assert redis.hgetall(keys.BUILDING) == {}
        assert cast("list[str]", redis.lrange(keys.ENDED_JOBS, 0, -1)).count("j-bad") <= 1
        if name == "message":
            assert read_record(redis, "j-bad").state in FINAL_STATES
        assert (outside / "building.json").exists()
        redis.flushdb()

    check()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data", "outside"]


def test_a_web_process_answers_whatever_lies_in_redis(
    redis: Redis, settings: Settings, long_form: bool
) -> None:
    publish_index(settings.indexes_dir / "facts")
    job_id = "0" * 32
    record = RECORD.model_copy(update={"job_id": job_id, "state": "succeeded"})
    web_settings = ServiceSettings(
        data_dir=settings.data_dir, redis_url=settings.redis_url, allowed_hosts=("testserver",)
    )
    texts = st.one_of(
        st.tuples(st.just(keys.worker_key("w-bad")), changed(HEARTBEAT, Heartbeat.model_json_schema())),
        st.tuples(st.just(keys.job_key(job_id)), changed(record, JobRecord.model_json_schema())),
        st.tuples(st.just(keys.events_key(job_id)), changed(record, JobRecord.model_json_schema())),
        st.tuples(st.just(keys.BUILDING), hostile_values.map(str.encode)),
    )
    calls = [
        *(("GET", path) for path in ("/workers", "/models", "/metrics", "/readyz", "/index", "/jobs")),
        *(("GET", path) for path in (f"/jobs/{job_id}", f"/jobs/{job_id}/events", "/index/facts")),
        ("DELETE", f"/jobs/{job_id}"),
    ]
    with TestClient(create_app(web_settings), raise_server_exceptions=False) as client:

        @seed(0)
        @examples(15, long_form)
        @given(texts, st.booleans())
        def check(text: tuple[str, bytes], is_of_another_type: bool) -> None:
            key, value = text
            redis.set(keys.worker_key("w-good"), HEARTBEAT.model_dump_json())
            redis.sadd(keys.WORKERS, "w-good", "w-bad")
            redis.zadd(keys.JOBS_BY_CREATION, {job_id: 1})
            for name in (keys.job_key(job_id), keys.events_key(job_id)):
                change = value if key == name else record.model_dump_json()
                if key == name and is_of_another_type:
                    redis.set(name, value)
                elif name == keys.job_key(job_id):
                    redis.hset(name, mapping=cast("Any", {"record": change, "token": "0"}))
                else:
                    redis.xadd(name, cast("Any", {"record": change}))
            if key == keys.BUILDING:
                redis.hset(keys.BUILDING, mapping=cast("Any", {value: job_id}))
            elif key == keys.worker_key("w-bad"):
                redis.hset(key, "a", "b") if is_of_another_type else redis.set(key, value)
            for method, path in calls:
                response = client.request(method, path)
                require_no_failure(response)
                if path == "/metrics":
                    assert list(text_string_to_metric_families(response.text))
                elif path in ("/workers", "/models"):
                    assert response.status_code == 200, response.text
            redis.flushdb()

        check()


def test_a_changed_reply_is_an_error_by_name_and_the_next_one_is_read(
    redis: Redis, settings: Settings, long_form: bool
) -> None:
    async def asked() -> list[str]:
        return cast("list[str]", redis.keys(f"{keys.QUERY_PREFIX}*"))

    async def ask(reply: bytes) -> Answer | BergsonError:
        async with Broker.connect(settings) as broker:
            redis.set(keys.worker_key("w-1"), HEARTBEAT.model_dump_json())
            redis.sadd(keys.WORKERS, "w-1")
            asking = asyncio.create_task(broker.ask(make_query(), "r", 20))
            names = await wait_until_async(asked)
            query_id = names[0].removeprefix(keys.QUERY_PREFIX)
            good = REPLY.model_copy(update={"query_id": query_id}).model_dump_json()
            for raw in (reply.replace(b"q-bad", query_id.encode()), good):
                redis.xadd(broker._replies.stream, {"reply": raw})
            try:
                return await asking
            except BergsonError as error:
                return error

    @seed(0)
    @examples(15, long_form)
    @given(changed(REPLY, Reply.model_json_schema()))
    def check(reply: bytes) -> None:
        outcome = asyncio.run(ask(reply))
        assert isinstance(outcome, BergsonError) or outcome.model_dump_json()
        redis.flushdb()

    check()
