"""A Redis that accepts connections and never answers: every call ends in time, and nothing is left behind."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from pathlib import Path
from typing import Any, cast
from uuid import uuid4

import pytest

from bergson_core.errors import DeadlineExceeded, RedisUnavailable
from service.auth.api_keys import Caller
from service.auth.rate_limits import RateLimiter, redis_storage
from service.queue.broker import GRACE_S, Broker
from service.queue.redis_calls import PROBE_WAIT_S, REDIS_WAIT_S, call_redis, cancel_and_wait
from tests.faults.support.proxy import CALM, SILENT, Proxy, Weather
from tests.worker.fakes import make_query, make_spec
from tests.worker.helpers import make_build_job, wait_until_async
from tests.worker.servers import free_port, running_server, server_options
from worker.messages import EstimateJob, Heartbeat, Reply
from worker.queue.job_queue import WorkerQueue
from worker.queue.redis_client import connect
from worker.settings import Settings

HEARTBEAT = Heartbeat(worker_id="w-1", pid=1, host="h", device="cpu", started_at=0, state="idle")
LATE_S = 3.0  # a busy machine may be late by this


@pytest.fixture
async def proxy(require: Callable[..., str], tmp_path: Path) -> AsyncIterator[Proxy]:
    """A proxy before a Redis in which a worker is alive."""
    port = free_port()
    url = f"redis://127.0.0.1:{port}/0"
    command = [require("redis-server"), *server_options(port=port)]
    with running_server(command, tmp_path / "redis", url), Proxy(port) as proxy, connect(url) as client:
        WorkerQueue(client, Settings(heartbeat_s=100), "w-1").send_heartbeat(HEARTBEAT)
        yield proxy


@pytest.fixture
async def broker(proxy: Proxy, tmp_path: Path) -> AsyncIterator[Broker]:
    settings = Settings(data_dir=tmp_path / "data", redis_url=proxy.url, heartbeat_s=100)
    async with Broker.connect(settings) as broker:
        await broker.ping()
        yield broker


async def measure(call: Coroutine[Any, Any, Any]) -> tuple[float, BaseException | None]:
    """Returns how many seconds a call takes, and the error that it raises."""
    started = time.monotonic()
    (outcome,) = await asyncio.gather(call, return_exceptions=True)
    return time.monotonic() - started, outcome if isinstance(outcome, BaseException) else None


async def require_idle(broker: Broker, tasks: set[asyncio.Task[Any]]) -> None:
    """Waits until no connection is in use, and no task is left that is not one of `tasks`."""

    async def is_idle() -> bool:
        return not broker.pool._in_use_connections and asyncio.all_tasks() <= tasks

    await wait_until_async(is_idle)


@pytest.mark.parametrize("timeout_s", [0.05, 1.0])
async def test_a_query_ends_by_its_deadline(broker: Broker, proxy: Proxy, timeout_s: float):
    proxy.weather = SILENT
    seconds, error = await measure(broker.ask(make_query(), "r", timeout_s))
    assert isinstance(error, RedisUnavailable)
    assert seconds < timeout_s + GRACE_S + LATE_S


async def test_a_query_ends_by_its_deadline_if_redis_stops_while_a_worker_is_awaited(
    broker: Broker, proxy: Proxy
):
    asking = asyncio.create_task(measure(broker.ask(make_query(), "r", 1)))
    with connect(proxy.url) as client:
        await wait_until_async(lambda: asyncio.to_thread(client.zcard, "bergson:queries:interactive:waiting"))
    proxy.weather = SILENT
    seconds, error = await asking
    assert isinstance(error, RedisUnavailable)
    assert seconds < 1 + GRACE_S + LATE_S


async def test_an_estimate_ends_by_its_deadline(broker: Broker, proxy: Proxy):
    job = EstimateJob(job_id=uuid4().hex, request_id="r", spec=make_spec())
    running = asyncio.create_task(measure(broker.estimate(job, 1)))
    await wait_until_async(broker.list_jobs)
    proxy.weather = SILENT
    seconds, error = await running
    assert isinstance(error, DeadlineExceeded | RedisUnavailable)
    assert seconds < 1 + GRACE_S + LATE_S


async def test_every_other_call_ends_within_its_bound(broker: Broker, proxy: Proxy):
    limits = RateLimiter(redis_storage(broker.pool))
    job = await broker.submit(make_build_job("facts", make_spec()))
    events = broker.iter_events(job.job_id)
    await anext(events)
    next_event = asyncio.create_task(measure(cast("Any", anext(events))))
    await asyncio.sleep(0.2)  # it waits in Redis
    proxy.weather = SILENT
    calls = {
        "ping": (broker.ping(), PROBE_WAIT_S),
        "load": (broker.read_load(), PROBE_WAIT_S),
        "limits": (limits.start_call(Caller(id="0" * 12, name="ada", rate="3/minute")), PROBE_WAIT_S),
        "workers": (broker.list_workers(), REDIS_WAIT_S),
        "submit": (broker.submit(make_build_job("new", make_spec())), REDIS_WAIT_S),
        "read": (broker.read_job(job.job_id), REDIS_WAIT_S),
        "list": (broker.list_jobs(), REDIS_WAIT_S),
        "cancel": (broker.cancel(job.job_id), REDIS_WAIT_S),
        "active": (broker.active_jobs(), REDIS_WAIT_S),
        "follow": (anext(broker.iter_events(job.job_id)), REDIS_WAIT_S),
        "ask": (broker.ask(make_query(), "r", 30), REDIS_WAIT_S),
    }
    measured = await asyncio.gather(*(measure(call) for call, _ in calls.values()))
    for (name, (_, limit_s)), (seconds, error) in zip(calls.items(), measured, strict=True):
        assert isinstance(error, RedisUnavailable), (name, error)
        assert seconds < limit_s + LATE_S, name
    seconds, error = await next_event
    assert isinstance(error, RedisUnavailable) and seconds < 5 + LATE_S


async def test_hung_calls_use_no_connection_up(broker: Broker, proxy: Proxy):
    """More calls than there are connections are given up, by themselves and by their callers, and more than once."""
    tasks = asyncio.all_tasks()
    for _ in range(2):
        proxy.weather = SILENT
        calls = [asyncio.create_task(measure(broker.ask(make_query(), "r", 0.3))) for _ in range(100)]
        waiting = [asyncio.create_task(broker.list_workers()) for _ in range(100)]
        await asyncio.gather(*calls)
        for number, task in enumerate(waiting):
            task.cancel()
            if number % 3 == 0:
                await cancel_and_wait(task)
        await asyncio.gather(*waiting, return_exceptions=True)
        proxy.weather = CALM
        await require_idle(broker, tasks)
        await asyncio.gather(*(broker.list_workers() for _ in range(100)))
    assert proxy.connections <= 32 + 1


async def test_a_query_is_answered_again_once_redis_is_back(broker: Broker, proxy: Proxy):
    proxy.weather = SILENT
    await measure(broker.ask(make_query(), "r", 0.2))
    proxy.weather = CALM
    asking = asyncio.create_task(broker.ask(make_query(), "r", 20))
    with connect(proxy.url) as client:
        queue = WorkerQueue(client, Settings(), "w-1")
        (query,) = await wait_until_async(lambda: asyncio.to_thread(queue.queries.take))
        queue.queries.send_replies([(query, Reply(query_id=query.query_id))])
    with pytest.raises(Exception, match="the answer is empty"):
        await asking


async def test_a_call_that_swallows_a_cancellation_does_not_hold_its_caller_up():
    ended = asyncio.Event()

    async def stubborn() -> None:
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            await asyncio.sleep(0.05)
            ended.set()

    seconds, error = await measure(call_redis(stubborn(), 0.1))
    assert isinstance(error, RedisUnavailable) and seconds < 0.1 + LATE_S
    await asyncio.wait_for(ended.wait(), 5)


async def test_a_late_reply_is_never_the_reply_to_another_command(broker: Broker, proxy: Proxy):
    jobs = [await broker.submit(make_build_job(f"i-{number}", make_spec())) for number in range(3)]
    proxy.weather = Weather(delay_s=0.3)
    late = [asyncio.create_task(broker.read_job(job.job_id)) for job in jobs]
    await asyncio.sleep(0.35)  # the requests have arrived, and their replies are on their way
    for task in late:
        task.cancel()
    proxy.weather = CALM
    for job in jobs * 10:
        assert (await broker.read_job(job.job_id)).job_id == job.job_id
        await asyncio.sleep(0.02)
