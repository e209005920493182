"""A full Redis says that it is full to every caller, also where the heartbeats of live workers no longer arrive."""

from collections.abc import Iterator
from typing import Any

import pytest
from fastapi.testclient import TestClient
from redis import Redis

from bergson_core.errors import DeadlineExceeded, NoWorker, RedisFull, RedisUnavailable
from service.app import create_app
from service.auth.api_keys import Caller
from service.auth.rate_limits import RateLimiter, redis_storage
from service.client.errors import error_from_response
from service.queue.broker import Broker
from service.settings import ServiceSettings
from tests.service.helpers import EXAMPLE_BODIES, require_problem
from tests.worker.fakes import make_query, make_spec
from tests.worker.helpers import make_build_job
from worker.messages import Heartbeat
from worker.queue import redis_keys
from worker.queue.job_queue import WorkerQueue
from worker.settings import Settings

HEARTBEAT = Heartbeat(worker_id="w-1", pid=1, host="h", device="cpu", started_at=0, state="idle")


def set_limit(redis: Redis, limit_bytes: int) -> None:
    redis.config_set("maxmemory", limit_bytes)


@pytest.fixture
def full(redis: Redis) -> Iterator[Redis]:
    """A Redis that a test may fill; no worker has a heartbeat in it."""
    yield redis
    set_limit(redis, 0)


async def test_everything_that_writes_says_that_redis_is_full(broker: Broker, full: Redis):
    job = await broker.submit(make_build_job("facts", make_spec()))
    set_limit(full, 1)
    limits = RateLimiter(redis_storage(broker.pool))
    for call in (
        lambda: broker.ping(),
        lambda: broker.submit(make_build_job("other", make_spec())),
        lambda: broker.ask(make_query(), "r", 5),
        lambda: limits.start_call(Caller(id="0" * 12, name="ada", rate="3/minute")),
    ):
        with pytest.raises(RedisFull, match=r"Redis is full: .*maxmemory"):
            await call()
    assert (await broker.read_job(job.job_id)).state == "queued"
    assert [record.job_id for record in (await broker.list_jobs())[0]] == [job.job_id]


async def test_a_waiting_job_can_be_cancelled_to_make_room(broker: Broker, full: Redis):
    job = await broker.submit(make_build_job("facts", make_spec()))
    set_limit(full, 1)
    assert (await broker.cancel(job.job_id)).state == "cancelled"
    assert not full.hexists(redis_keys.job_key(job.job_id), "message")
    assert not full.exists(redis_keys.BUILDING)
    set_limit(full, 0)
    assert (await broker.submit(make_build_job("facts", make_spec()))).state == "queued"


async def test_an_answer_for_which_there_is_no_room_is_not_called_late(
    broker: Broker, full: Redis, queue: WorkerQueue, monkeypatch: pytest.MonkeyPatch
):
    queue.send_heartbeat(HEARTBEAT)
    enqueue = broker._enqueue

    async def enqueue_and_fill(*arguments: Any) -> None:
        await enqueue(*arguments)
        set_limit(full, 1)

    monkeypatch.setattr(broker, "_enqueue", enqueue_and_fill)
    with pytest.raises(RedisFull):
        await broker.ask(make_query(), "r", 0.2)
    set_limit(full, 0)
    monkeypatch.undo()
    with pytest.raises(DeadlineExceeded):
        await broker.ask(make_query(), "r", 0.2)


async def test_without_a_worker_redis_that_has_room_is_not_blamed(broker: Broker, redis: Redis):
    with pytest.raises(NoWorker):
        await broker.ask(make_query(), "r", 5)
    await broker.ping()
    assert not redis.exists(redis_keys.QUERY_LEASES)


async def test_a_replica_is_told_from_a_redis_that_does_not_answer(broker: Broker, redis: Redis):
    redis.execute_command("REPLICAOF", "127.0.0.1", "1")
    try:
        with pytest.raises(RedisUnavailable, match="replica that accepts no writes"):
            await broker.ping()
    finally:
        redis.execute_command("REPLICAOF", "NO", "ONE")


def test_the_service_answers_503_with_a_code_of_its_own(full: Redis, settings: Settings):
    service = ServiceSettings.model_validate(settings.model_dump() | {"allowed_hosts": "testserver"})
    with TestClient(create_app(service), raise_server_exceptions=False) as client:
        set_limit(full, 1)
        for response in (
            client.get("/readyz"),
            client.head("/readyz"),
            client.post("/index", json=EXAMPLE_BODIES["build_index"]),
            client.post("/attribute", json=EXAMPLE_BODIES["attribute"]),
        ):
            assert response.status_code == 503
            assert response.headers["Retry-After"] == "5"
        problem = require_problem(response, 503, "redis_full")
        assert problem.title == "Redis is full" and "maxmemory" in problem.detail
        assert isinstance(error_from_response(response), RedisFull)  # pyright: ignore[reportArgumentType]
        assert client.get("/livez").status_code == 200
        set_limit(full, 0)
        assert client.post("/index", json=EXAMPLE_BODIES["build_index"]).status_code == 202
        require_problem(client.get("/readyz"), 503, "no_worker")
