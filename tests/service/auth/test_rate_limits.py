"""What one key may ask: so many calls in a span of time, so many open at once."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient

from bergson_core.errors import RateLimited, RedisUnavailable
from service.auth.api_keys import Caller
from service.auth.rate_limits import RateLimiter, redis_storage
from service.settings import ServiceSettings
from tests.service.helpers import create_key, require_problem
from worker.queue.embedded_redis import redis_url
from worker.queue.redis_client import connect_async


def make_caller(key_id: str = "0" * 12, rate: str | None = None, concurrent: int | None = None) -> Caller:
    return Caller(id=key_id, name="ada", rate=rate, concurrent=concurrent)


@asynccontextmanager
async def connect_rate_limiter(url: str) -> AsyncIterator[RateLimiter]:
    """The limits of one web process that counts in Redis, as `service.app` makes them."""
    async with connect_async(url, 8) as redis:
        yield RateLimiter(redis_storage(redis.connection_pool))


async def make_calls(limits: RateLimiter, who: Caller, calls: int = 1) -> None:
    for _ in range(calls):
        await limits.start_call(who)
        limits.end_call(who)


def test_a_key_that_asks_too_often_is_told_when_to_come_back(client: TestClient, tmp_path: Path) -> None:
    ada, bob = create_key(tmp_path, rate="2/minute"), create_key(tmp_path, "bob", rate="2/minute")
    assert [client.get("/index", headers=ada).status_code for _ in range(3)] == [200, 200, 429]
    refused = client.get("/index", headers=ada)
    assert "2/minute" in require_problem(refused, 429, "rate_limited").detail
    assert 1 <= int(refused.headers["retry-after"]) <= 60
    assert client.get("/index", headers=bob).status_code == 200, "each key has its own"


async def test_the_calls_that_are_open_are_counted_until_they_end(limits: RateLimiter) -> None:
    who = make_caller(concurrent=2)
    await limits.start_call(who)
    await limits.start_call(who)
    with pytest.raises(RateLimited, match="2 calls"):
        await limits.start_call(who)
    await limits.start_call(make_caller("1" * 12, concurrent=1))
    limits.end_call(who)
    await limits.start_call(who)


async def test_a_call_that_is_refused_is_not_counted_as_open(limits: RateLimiter) -> None:
    who = make_caller(rate="1/minute", concurrent=1)
    await make_calls(limits, who)
    for _ in range(3):
        with pytest.raises(RateLimited, match="1/minute"):
            await limits.start_call(who)


@pytest.fixture
async def limits() -> RateLimiter:
    return RateLimiter()


async def test_a_slow_call_over_http_keeps_the_next_one_out(
    app: FastAPI, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    headers, begun, go_on = create_key(tmp_path, concurrent=1), asyncio.Event(), asyncio.Event()

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
    who = make_caller(rate="3/minute")
    with redis_url(ServiceSettings(data_dir=tmp_path)) as url:
        async with connect_rate_limiter(url) as one, connect_rate_limiter(url) as other:
            await make_calls(one, who, 2)
            await make_calls(other, who)
            for limits in (one, other):
                with pytest.raises(RateLimited, match="3/minute") as refused:
                    await limits.start_call(who)
                assert 1 <= refused.value.wait_s <= 60
            await make_calls(other, make_caller("1" * 12, rate="3/minute"), 3)
        async with connect_async(url, 8) as redis:
            keys = await redis.keys("*")
            assert keys and all(key.startswith("bergson:rate:") for key in keys)
            assert all([0 < await redis.ttl(key) <= 120 for key in keys])


async def test_a_rate_that_cannot_be_counted_lets_nobody_through(tmp_path: Path) -> None:
    async with connect_rate_limiter(f"unix://{tmp_path}/none.sock") as limits:
        with pytest.raises(RedisUnavailable):
            await limits.start_call(make_caller(rate="3/minute"))
        await make_calls(limits, make_caller())
