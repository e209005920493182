"""Connections to Redis whose bytes arrive twice, in part or changed: an error by name, and never a wrong answer."""

import asyncio
import random
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from bergson_core.errors import BergsonError
from service.queue.broker import Broker
from service.queue.redis_calls import call_redis
from tests.faults.support.proxy import CALM, Proxy, Weather
from tests.worker.fakes import make_query, make_spec
from tests.worker.helpers import make_build_job, wait_until_async
from tests.worker.servers import free_port, running_server, server_options
from worker.messages import Heartbeat
from worker.queue.job_queue import WorkerQueue
from worker.queue.redis_client import connect
from worker.settings import Settings

WAIT_S = 0.5
"""How long a call waits for Redis here. A connection with a changed length of a reply waits for what never comes."""
HEARTBEAT = Heartbeat(worker_id="w-1", pid=1, host="h", device="cpu", started_at=0, state="idle")


@pytest.mark.parametrize(
    "weather",
    [
        Weather(cut=0.3),
        Weather(half_close=0.3),
        Weather(split=1.0),
        Weather(duplicate=0.5, directions=("reply",)),
        Weather(duplicate=0.5, directions=("request",)),
        Weather(garble=0.5, directions=("reply",)),
    ],
    ids=["cut", "half-closed", "split", "replies twice", "commands twice", "changed"],
)
async def test_calls_give_their_own_answer_or_an_error_by_name(
    require: Callable[..., str], tmp_path: Path, weather: Weather, monkeypatch: pytest.MonkeyPatch
):
    port = free_port()
    url = f"redis://127.0.0.1:{port}/0"
    command = [require("redis-server"), *server_options(port=port)]
    with running_server(command, tmp_path / "redis", url), Proxy(port) as proxy, connect(url) as client:
        WorkerQueue(client, Settings(heartbeat_s=100), "w-1").send_heartbeat(HEARTBEAT)
        proxy.generator = random.Random(7)
        settings = Settings(data_dir=tmp_path / "data", redis_url=proxy.url, heartbeat_s=100)
        async with Broker.connect(settings) as broker:
            jobs = [await broker.submit(make_build_job(f"i-{number}", make_spec())) for number in range(4)]
            for call in (call_redis, Broker.list_workers, Broker.active_jobs, Broker._require_worker):
                monkeypatch.setattr(call, "__defaults__", (WAIT_S,))
            monkeypatch.setattr("service.queue.broker.REDIS_WAIT_S", WAIT_S)
            proxy.weather = weather
            for turn in range(15):
                calls: list[Awaitable[Any]] = [
                    *(broker.read_job(job.job_id) for job in jobs),
                    broker.list_workers(),
                    broker.list_jobs(),
                    broker.active_jobs(),
                    broker.read_load(),
                    broker.ask(make_query(), "r", 0.05),
                    broker.submit(make_build_job(f"i-{turn}", make_spec())),
                    anext(broker.iter_events(jobs[0].job_id)),
                ]
                outcomes: list[Any] = await asyncio.gather(*calls, return_exceptions=True)
                unexpected = [
                    outcome
                    for outcome in outcomes
                    if isinstance(outcome, BaseException) and not isinstance(outcome, BergsonError)
                ]
                assert not unexpected, repr(unexpected[0])
                for job, outcome in zip(jobs, outcomes, strict=False):
                    assert isinstance(outcome, BergsonError) or outcome.job_id == job.job_id
            proxy.weather = CALM
            proxy.cut_all()

            async def is_well() -> bool:
                try:
                    return await broker.read_job(jobs[0].job_id) == jobs[0] and not broker._replies.failure
                except BergsonError:
                    return False

            await wait_until_async(is_well)
