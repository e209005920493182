"""The limits of a key: how many calls in a span of time, and how many open at once."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient

from bergson_core.errors import QueueFull, RateLimited, RedisUnavailable
from service.auth.api_keys import Caller
from service.auth.rate_limits import RateLimiter, redis_storage
from service.settings import ServiceSettings
from tests.service.helpers import make_key_header, require_problem
from worker.queue.embedded_redis import redis_url
from worker.queue.redis_client import connect_async


def make_caller(key_id: str = "0" * 12, rate: str | None = None, concurrent: int | None = None) -> Caller:
    return Caller(id=key_id, name="ada", rate=rate, concurrent=concurrent)


@asynccontextmanager
async def connect_rate_limiter(url: str) -> AsyncIterator[RateLimiter]:
    """The rate limiter of one web process, which counts in Redis, as `service.app` makes it."""
    async with connect_async(url, 8) as redis:
        yield RateLimiter(redis_storage(redis.connection_pool))


async def make_calls(limiter: RateLimiter, caller: Caller, calls: int = 1) -> None:
    for _ in range(calls):
        await limiter.start_call(caller)
        limiter.end_call(caller)


def test_a_key_that_calls_too_often_learns_when_to_try_again(client: TestClient, tmp_path: Path) -> None:
    ada, bob = make_key_header(tmp_path, rate="2/minute"), make_key_header(tmp_path, "bob", rate="2/minute")
    assert [client.get("/index", headers=ada).status_code for _ in range(3)] == [200, 200, 429]
    refused = client.get("/index", headers=ada)
    assert "2/minute" in require_problem(refused, 429, "rate_limited").detail
    assert 1 <= int(refused.headers["retry-after"]) <= 60
    assert client.get("/index", headers=bob).status_code == 200, "each key has its own"


async def test_open_calls_are_counted_until_they_end(limiter: RateLimiter) -> None:
    caller = make_caller(concurrent=2)
    await limiter.start_call(caller)
    await limiter.start_call(caller)
    with pytest.raises(RateLimited, match="2 calls"):
        await limiter.start_call(caller)
    await limiter.start_call(make_caller("1" * 12, concurrent=1))
    limiter.end_call(caller)
    await limiter.start_call(caller)


async def test_a_refused_call_is_not_counted_as_open(limiter: RateLimiter) -> None:
    caller = make_caller(rate="1/minute", concurrent=1)
    await make_calls(limiter, caller)
    for _ in range(3):
        with pytest.raises(RateLimited, match="1/minute"):
            await limiter.start_call(caller)


@pytest.fixture
async def limiter() -> RateLimiter:
    return RateLimiter()


async def test_a_slow_call_over_http_blocks_the_next_one(
    app: FastAPI, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    headers, begun, go_on = make_key_header(tmp_path, concurrent=1), asyncio.Event(), asyncio.Event()

    async def slow() -> list[object]:
        begun.set()
        await go_on.wait()
        return []

    monkeypatch.setattr(app.state.broker, "list_workers", slow)
    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(
        transport=transport, base_url="http://testserver", headers=headers
    ) as client:
        first = asyncio.create_task(client.get("/workers"))
        await begun.wait()
        require_problem(await client.get("/index"), 429, "rate_limited")
        go_on.set()
        assert (await first).status_code == 200
        assert (await client.get("/index")).status_code == 200


async def test_web_processes_count_together_in_redis(tmp_path: Path) -> None:
    caller = make_caller(rate="3/minute")
    with redis_url(ServiceSettings(data_dir=tmp_path)) as url:
        async with connect_rate_limiter(url) as first, connect_rate_limiter(url) as second:
            await make_calls(first, caller, 2)
            await make_calls(second, caller)
            for limiter in (first, second):
                with pytest.raises(RateLimited, match="3/minute") as refused:
                    await limiter.start_call(caller)
                assert 1 <= refused.value.wait_s <= 60
            await make_calls(second, make_caller("1" * 12, rate="3/minute"), 3)
        async with connect_async(url, 8) as redis:
            keys = await redis.keys("*")
            assert keys and all(key.startswith("bergson:rate:") for key in keys)
            assert all([0 < await redis.ttl(key) <= 120 for key in keys])


async def test_no_call_is_admitted_when_it_cannot_be_counted(tmp_path: Path) -> None:
    async with connect_rate_limiter(f"unix://{tmp_path}/none.sock") as limiter:
        with pytest.raises(RedisUnavailable):
            await limiter.start_call(make_caller(rate="3/minute"))
        await make_calls(limiter, make_caller())


async def test_all_keys_together_may_have_so_many_calls_open() -> None:
    limiter, nobody = RateLimiter(max_open_calls=3), make_caller("")
    for _ in range(3):
        await limiter.start_call(nobody)
    with pytest.raises(QueueFull, match="3 requests are open"):
        await limiter.start_call(nobody)
    with pytest.raises(QueueFull):
        await limiter.start_call(make_caller())
    limiter.end_call(nobody)
    await limiter.start_call(make_caller())


async def test_a_key_may_have_as_many_calls_open_as_the_others_have_left() -> None:
    limiter, ada, bob = RateLimiter(max_open_calls=8), make_caller("a" * 12), make_caller("b" * 12)
    for _ in range(4):
        await limiter.start_call(ada)
    with pytest.raises(QueueFull, match="4 requests of this key are open, and only 4 more"):
        await limiter.start_call(ada)
    for _ in range(2):
        await limiter.start_call(bob)
    with pytest.raises(QueueFull, match="2 requests of this key"):
        await limiter.start_call(bob)
    await limiter.start_call(make_caller("c" * 12))


async def test_an_open_request_too_many_is_refused_but_health_checks_are_not(app: FastAPI) -> None:
    app.state.rate_limiter = RateLimiter(max_open_calls=0)
    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
        refused = await client.get("/index")
        require_problem(refused, 429, "queue_full")
        assert int(refused.headers["retry-after"]) >= 1
        for path in ("/livez", "/readyz"):
            assert (await client.get(path)).status_code == 200
