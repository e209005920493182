"""Fixtures over a real Redis, which the tests of the worker and of the broker share."""

import os
import sys
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import cast
from uuid import uuid4

import pytest
from redis import Redis

from service.queue.broker import Broker
from tests.processes import forkserver_context
from tests.worker import fakes
from tests.worker.fakes import FakeCore
from tests.worker.helpers import TIMEOUT_S
from tests.worker.servers import read_refusals, restrict_user, running_server, server_options
from worker.process.runner import Runner
from worker.queue.embedded_redis import embedded_redis
from worker.queue.job_queue import WorkerQueue
from worker.queue.redis_client import connect
from worker.settings import Settings


@pytest.fixture(scope="session", params=["embedded", "system"])
def redis_at(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, require: Callable[..., str]
) -> Iterator[tuple[str, str]]:
    """URLs of a Redis, for the test and for the code under test: the embedded one (6.2), or the newer one on the PATH.

    On the latter the code under test is a user with no more rights than docs/redis.acl lists.
    """
    directory = tmp_path_factory.mktemp("redis")
    if request.param == "embedded":
        with embedded_redis(directory) as url:
            yield url, url
        return
    url = f"unix://{directory}/redis.sock"
    command = [require("redis-server"), *server_options(port=0, unixsocket=f"{directory}/redis.sock")]
    with running_server(command, directory, url):
        yield url, restrict_user(url)
        assert read_refusals(url) == []


@pytest.fixture
def redis(redis_at: tuple[str, str]) -> Iterator[Redis]:
    """A client of an empty Redis."""
    with connect(redis_at[0]) as client:
        client.flushdb()
        yield client


@pytest.fixture
def settings(tmp_path: Path, redis_at: tuple[str, str]) -> Settings:
    return Settings(
        data_dir=tmp_path / "data",
        redis_url=redis_at[1],
        lease_s=1,
        query_lease_s=0.6,
        heartbeat_s=0.2,
        poll_s=0.02,
        query_batch=4,
        max_queued_queries=8,
        max_deliveries=3,
    )


@pytest.fixture
def make_queue(redis: Redis, settings: Settings) -> Iterator[Callable[[str], WorkerQueue]]:
    with connect(cast("str", settings.redis_url)) as client:

        def make(worker_id: str) -> WorkerQueue:
            return WorkerQueue(client, settings, worker_id)

        yield make


@pytest.fixture
def queue(make_queue: Callable[[str], WorkerQueue]) -> WorkerQueue:
    return make_queue("w-1")


@pytest.fixture
async def broker(redis: Redis, settings: Settings) -> AsyncIterator[Broker]:
    async with Broker.connect(settings) as broker:
        yield broker


@pytest.fixture
def core(monkeypatch: pytest.MonkeyPatch) -> FakeCore:
    """The fake core in place of the real one."""
    core = FakeCore()
    for name, module in core.modules().items():
        monkeypatch.setitem(sys.modules, name, module)
    return core


@pytest.fixture
def start_worker(core: FakeCore, redis: Redis, settings: Settings) -> Iterator[Callable[[], Runner]]:
    """Starts workers as threads of this process, over the fake core; they are stopped at the end."""
    workers: list[tuple[Runner, threading.Thread]] = []

    def start() -> Runner:
        queue = WorkerQueue(connect(cast("str", settings.redis_url)), settings, f"w-{uuid4().hex[:6]}")
        runner = Runner(queue, settings, "fake")
        thread = threading.Thread(target=runner.run)
        thread.start()
        workers.append((runner, thread))
        return runner

    yield start
    for runner, _ in workers:
        runner.stop()
    for _, thread in workers:
        thread.join(TIMEOUT_S)
        assert not thread.is_alive()


class WorkerProcess:
    """A worker over the fake core, in a process that starts from one that has loaded the library."""

    def __init__(self, environment: dict[str, str], log: Path) -> None:
        self.log = log
        self._process = forkserver_context().Process(target=_run_fake_worker, args=(environment, log))
        self._process.start()

    def poll(self) -> int | None:
        return self._process.exitcode

    def wait(self) -> int | None:
        self._process.join(TIMEOUT_S)
        return self._process.exitcode

    def send_signal(self, number: int) -> None:
        os.kill(cast("int", self._process.pid), number)

    def kill(self) -> None:
        self._process.kill()
        self._process.join()


def _run_fake_worker(environment: dict[str, str], log: Path) -> None:
    with log.open("ab") as file:
        os.dup2(file.fileno(), sys.stderr.fileno())
    os.environ.update(environment)
    fakes.main()


@pytest.fixture
def spawn_worker(settings: Settings, tmp_path: Path) -> Iterator[Callable[..., WorkerProcess]]:
    """Starts workers as processes, over the fake core; `spawn_worker(FAKE_BATCH_S="0.1")`."""
    with ExitStack() as stack:

        def spawn(**environment: str) -> WorkerProcess:
            names = ("lease_s", "query_lease_s", "heartbeat_s", "poll_s", "max_deliveries", "data_dir")
            variables = {f"BERGSON_{name.upper()}": str(getattr(settings, name)) for name in names}
            variables |= {"REDIS_URL": cast("str", settings.redis_url)}
            process = WorkerProcess(variables | environment, tmp_path / f"worker-{uuid4().hex}.log")
            stack.callback(process.kill)
            return process

        yield spawn
