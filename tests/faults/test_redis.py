"""Redis that is killed, loses data, hangs, is full or steps its clock, and connections to it that misbehave.

After each fault: every accepted job has one end or is gone with its Redis, every query has one response by its
deadline, nothing waits in Redis, and no process has grown.
"""

import random
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import pytest

from bergson_core.errors import IndexExists, JobNotFound, RedisUnavailable
from service.client import Client
from tests.faults.support.invariants import hash_index, require_drained
from tests.faults.support.proxy import CALM, SILENT, Proxy, Weather
from tests.faults.support.system import System, wait_for_end, wait_until
from tests.faults.support.traffic import BUSY_MACHINE_S, Traffic
from tests.worker.clock import HOUR_S, step_clock

pytestmark = pytest.mark.e2e

MAX_GROWTH_BYTES = 60 * 2**20
OUTAGE_CODES = ("redis_unavailable", "no_worker", "deadline_exceeded", "queue_full")
WEATHERS = {
    "delayed": Weather(delay_s=0.05),
    "split": Weather(split=0.5),
    "cut": Weather(cut=0.05),
    "half-closed": Weather(half_close=0.05),
    "replies twice": Weather(duplicate=0.1, directions=("reply",)),
    "commands twice": Weather(duplicate=0.1, directions=("request",)),
    "no replies": Weather(swallow=("reply",)),
    "silent": SILENT,
}


class Scene:
    """A system with a web process and a worker behind a proxy, and the published index `facts`."""

    def __init__(self, system: System, proxy: Proxy):
        self.system, self.proxy = system, proxy
        system.redis_url = proxy.url
        self.url = system.start_web()
        self.worker = system.start_worker()
        self.names = (f"facts-{number}" for number in range(2, 10**6))
        with self.client() as client:
            wait_for_end(client, client.build("facts", **system.build_body()))
            client.attribute("facts", "Query", " Paris", top_k=1)
        self.expected = hash_index(system.data_dir / "indexes" / "facts")
        self.memory = [process.memory_bytes() for process in self.processes]

    @property
    def processes(self):
        return [*self.system.web_processes, self.worker]

    def client(self) -> Client:
        return self.system.client()

    def submit(self) -> tuple[str, str]:
        """Submits a build; returns the name of its index and the id of the job."""
        name = next(self.names)
        with self.client() as client:
            return name, client.build(name, **self.system.build_body()).job_id

    def require_succeeded(self, name: str, job_id: str) -> None:
        """Waits until a build has succeeded, and compares its index with that of an undisturbed build."""
        with self.client() as client:
            record = wait_until(lambda: _read_ended(client, job_id), f"job {job_id} ends")
        assert record.state == "succeeded", record
        assert hash_index(self.system.data_dir / "indexes" / name) == self.expected

    def require_works(self, builds: bool = True) -> None:
        """Checks that everything works again, that nothing is left in Redis, and that no process has grown.

        Args:
            builds: Whether to build an index as well.
        """
        with self.client() as client:
            wait_until(lambda: _is_ready(self.url), "the service is ready")
            wait_until(lambda: _answers(client), "a query is answered")
        if builds:
            self.require_succeeded(*self.submit())
        with self.system.connect_redis() as redis:
            require_drained(redis)
        for process, before in zip(self.processes, self.memory, strict=True):
            assert process.is_alive(), process.log.read_text()[-2000:]
            assert process.memory_bytes() < before + MAX_GROWTH_BYTES


def _read_ended(client: Client, job_id: str):
    try:
        record = client.job(job_id)
    except RedisUnavailable:
        return None
    return record if record.finished_at else None


def _build(client: Client, name: str, system: System) -> str | None:
    """Submits a build; returns the id of the job, or None while the name is not free."""
    try:
        return client.build(name, **system.build_body()).job_id
    except IndexExists:
        return None


def _is_ready(url: str) -> bool:
    return httpx.get(f"{url}/readyz", timeout=10, trust_env=False).status_code == 200


def _answers(client: Client) -> bool:
    try:
        return bool(client.attribute("facts", "Query", " Paris", top_k=1).results)
    except RedisUnavailable:
        return False


@pytest.fixture(scope="module")
def shared_scene(tmp_path_factory: pytest.TempPathFactory, require: Callable[..., str]) -> Iterator[Scene]:
    """One system for all tests of this file, since each of them leaves it in order."""
    with (
        System(tmp_path_factory.mktemp("scene"), require("redis-server")) as system,
        Proxy(urlsplit(system.redis_url).port or 0) as proxy,
    ):
        yield Scene(system, proxy)


@pytest.fixture
def scene(shared_scene: Scene, seeded: random.Random, long_form: bool) -> Iterator[Scene]:
    shared_scene.proxy.generator = seeded
    yield shared_scene
    shared_scene.require_works(builds=long_form)


@contextmanager
def weather(proxy: Proxy, weather: Weather) -> Iterator[None]:
    """Has the proxy misbehave while the context is open; then all connections are cut."""
    proxy.weather = weather
    try:
        yield
    finally:
        proxy.weather = CALM
        proxy.cut_all()


def tail_of_append_only_file(system: System) -> Path:
    """Returns the file that Redis writes its latest commands to."""
    directory = system.directory / "redis"
    return max(directory.rglob("*.aof"), key=lambda path: path.stat().st_size)


def test_redis_that_is_killed_and_restarted_loses_no_job(scene: Scene):
    system = scene.system
    assert system.redis_process is not None
    with Traffic(scene.url, "facts") as traffic:
        build = scene.submit()
        system.redis_process.kill()
        time.sleep(0.3)
        system.start_redis()
        wait_until(lambda: _is_ready(scene.url), "the service is ready")
    traffic.require_sound(*OUTAGE_CODES)
    scene.require_succeeded(*build)


def test_a_job_whose_last_steps_are_lost_with_the_tail_of_the_file_ends_or_is_gone(
    scene: Scene, seeded: random.Random
):
    system = scene.system
    assert system.redis_process is not None
    _, job_id = scene.submit()
    time.sleep(seeded.random())
    system.redis_process.kill()
    file = tail_of_append_only_file(system)
    content = file.read_bytes()
    file.write_bytes(content[: len(content) - seeded.randrange(1, len(content) // 4)])
    system.start_redis()
    wait_until(lambda: _is_ready(scene.url), "the service is ready")
    with scene.client() as client, suppress(JobNotFound):
        assert wait_for_end(client, job_id).state == "succeeded"


def test_an_empty_redis_with_a_smaller_clock_ends_what_was_in_the_first_one(scene: Scene):
    system = scene.system
    assert system.redis_process is not None
    with system.connect_redis() as redis:
        step_clock(redis, HOUR_S)
    with Traffic(scene.url, "facts") as traffic:
        name, job_id = scene.submit()
        system.redis_process.kill()
        shutil.rmtree(system.directory / "redis")
        system.start_redis()
        wait_until(lambda: _is_ready(scene.url), "the service is ready")
        answered = traffic.count()[200, ""]
        wait_until(lambda: traffic.count()[200, ""] > answered, "a query is answered")
    traffic.require_sound(*OUTAGE_CODES)
    with scene.client() as client:
        with pytest.raises(JobNotFound):
            client.job(job_id)
        again = wait_until(lambda: _build(client, name, system), "the name can be used again")
    scene.require_succeeded(name, again)


def test_redis_that_hangs_holds_nobody_up(scene: Scene, long_form: bool):
    system = scene.system
    assert system.redis_process is not None
    build = scene.submit()
    with Traffic(scene.url, "facts") as traffic:
        system.redis_process.freeze()
        frozen_at = time.monotonic()
        paths = {"/livez": 0.5, "/readyz": 1.5, "/metrics": 1.5} | ({"/jobs": 4.5} if long_form else {})
        for path, limit_s in paths.items():
            started = time.monotonic()
            httpx.get(scene.url + path, timeout=60, trust_env=False)
            assert time.monotonic() - started < limit_s + BUSY_MACHINE_S, path
        time.sleep(max(0.0, frozen_at + (10 if long_form else 1) - time.monotonic()))
        system.redis_process.resume()
        wait_until(lambda: _is_ready(scene.url), "the service is ready")
    traffic.require_sound(*OUTAGE_CODES)
    scene.require_succeeded(*build)


def test_a_full_redis_says_so_and_works_once_it_has_room(scene: Scene):
    build = scene.submit()
    with scene.system.connect_redis() as redis, Traffic(scene.url, "facts") as traffic:
        redis.config_set("maxmemory", 1)
        try:
            for path, body in (
                ("/index", {"name": "never", **scene.system.build_body()}),
                ("/index/estimate", scene.system.build_body()),
                ("/index/facts/compact", None),
            ):
                response = httpx.post(scene.url + path, json=body, timeout=60, trust_env=False)
                assert (response.status_code, response.json()["code"]) == (503, "redis_full"), path
        finally:
            redis.config_set("maxmemory", 0)
        wait_until(lambda: _is_ready(scene.url), "the service is ready")
    traffic.require_sound("redis_full", *OUTAGE_CODES)
    scene.require_succeeded(*build)


@pytest.mark.parametrize("step_s", [-HOUR_S, HOUR_S], ids=["back", "forward"])
def test_a_step_of_the_clock_of_redis_holds_nothing_up(scene: Scene, step_s: int):
    build = scene.submit()
    with Traffic(scene.url, "facts", timeout_s=2) as traffic, scene.system.connect_redis() as redis:
        wait_until(traffic.count, "a query is answered")
        step_clock(redis, step_s)
        wait_until(lambda: _is_ready(scene.url), "the service is ready")
        answered = traffic.count()[200, ""]
        wait_until(lambda: traffic.count()[200, ""] > answered, "a query is answered")
    traffic.require_sound(*OUTAGE_CODES)
    scene.require_succeeded(*build)


def test_connections_that_misbehave_mix_nothing_up(scene: Scene, seeded: random.Random, long_form: bool):
    for name in WEATHERS if long_form else seeded.sample(list(WEATHERS), 2):
        print(f"weather: {name}")
        with Traffic(scene.url, "facts") as traffic:
            build = scene.submit()
            with weather(scene.proxy, WEATHERS[name]):
                time.sleep(10 if long_form else 1)
            wait_until(lambda: _is_ready(scene.url), "the service is ready")
        traffic.require_sound(*OUTAGE_CODES)
        scene.require_succeeded(*build)
