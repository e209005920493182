"""Floods, slow clients, clients that vanish, and questions beside jobs.

The bounds are generous, since other tests may run beside these: they tell what is bounded from what grows with the
load.
"""

import asyncio
import json
import random
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from redis import Redis

from bergson_core.schemas.results import Progress
from service.auth.api_keys import Caller, KeyFile
from service.client import Client
from tests.faults.support.invariants import require_drained
from tests.faults.support.load import (
    Connection,
    Tally,
    Watch,
    ask_in_turn,
    flood,
    make_questions,
    make_request,
    require_own_answer,
    send,
)
from tests.faults.support.system import System, wait_for_end, wait_until
from worker.messages import JobRecord
from worker.queue import redis_keys

pytestmark = pytest.mark.e2e

CLIENT_TIMEOUT_S = 2.0
TIMEOUT_S = 30.0
"""The `timeout_s` of the questions."""
GENEROUS_S = 60.0
INDEX = "facts"
LARGE_FILE = "/static/swagger/swagger-ui-bundle.js"
SETTINGS = {
    "cache_bytes": 0,
    "query_batch": 1,
    "max_queued_queries": 32,
    "max_open_requests": 200,
    "client_timeout_s": CLIENT_TIMEOUT_S,
    "default_timeout_s": TIMEOUT_S,
}


class Service:
    """A system of one web process and one worker, with an index and with API keys.

    Attributes:
        headers: The header of each API key, by its name.
    """

    def __init__(self, system: System):
        self.system, self.url = system, system.start_web()
        system.start_worker()
        keys = KeyFile(system.data_dir)
        secrets = {
            name: keys.create(Caller(name=name, scope="admin"), expires_at=None) for name in ("ada", "bob")
        }
        self.headers = {name: {"Authorization": f"Bearer {secret}"} for name, secret in secrets.items()}
        self.client = Client(self.url, api_key=secrets["ada"])
        assert wait_for_end(self.client, self.client.build(INDEX, **system.build_body())).state == "succeeded"
        self.client.attribute(INDEX, "What opens", " the index")

    def watch(self) -> Watch:
        """Returns a watch on all processes of the system."""
        assert self.system.redis_process is not None
        processes = {"web": self.system.web_processes[0], "worker": self.system.workers[0]}
        return Watch(redis=self.system.redis_process, **processes)

    def questions(self, key: str = "ada", **fields: object) -> Iterator[bytes]:
        """Yields questions that are asked with an API key."""
        return make_questions(INDEX, self.headers[key], **fields)

    @property
    def log(self) -> Path:
        """The log of the web process."""
        return self.system.web_processes[0].log

    def read_durations_ms(self, since: int) -> list[float]:
        """Returns how long each question took that was answered, according to the log after `since` bytes."""
        lines = map(json.loads, self.log.read_bytes()[since:].splitlines())
        return [
            line["duration_ms"]
            for line in lines
            if (line.get("path"), line.get("status")) == ("/attribute", 200)
        ]

    def require_usual_speed(self, usual_s: float) -> float:
        """Waits until a single question is answered about as fast as before, and returns how long that took."""
        source, started = self.questions("bob"), time.monotonic()

        def is_quick() -> bool:
            response = asyncio.run(send(self.url, next(source)))
            return response.status == 200 and response.elapsed_s < max(1.0, 5 * usual_s)

        wait_until(is_quick, "a question is answered as fast as before", 10)
        return time.monotonic() - started


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory, require: Callable[..., str]) -> Iterator[Service]:
    directory = tmp_path_factory.mktemp("load")
    with System(directory, require("redis-server"), **SETTINGS) as system:
        service = Service(system)
        with service.client:
            yield service


@pytest.fixture
def redis(service: Service) -> Iterator[Redis]:
    with service.system.connect_redis() as client:
        yield client


def put_job(redis: Redis, events: int = 1, event_bytes: int = 100) -> str:
    """Puts a running job into Redis that has reported `events` times, as a worker would; returns its id."""
    record = JobRecord(
        job_id="0" * 32,
        kind="build",
        index="talkative",
        state="running",
        created_at=time.time(),
        progress=Progress(stage=event_bytes * "x"),
    )
    message = record.model_dump_json()
    redis.hset(redis_keys.job_key(record.job_id), mapping={"record": message, "token": "1"})
    for _ in range(events):
        redis.xadd(redis_keys.events_key(record.job_id), {"record": message})
    return record.job_id


def test_a_flood_is_refused_with_a_time_to_wait_and_leaves_nothing_behind(
    service: Service, redis: Redis, long_form: bool, record: Callable[..., None]
) -> None:
    usual = asyncio.run(ask_in_turn(service.url, service.questions(), clients=1, seconds=1))
    seconds = 10 if long_form else 1
    capacity = asyncio.run(ask_in_turn(service.url, service.questions(), clients=8, seconds=seconds))
    rate, length = 10 * capacity.responses[200] / seconds, 120 if long_form else 2

    async def run() -> tuple[Tally, Tally]:
        async with asyncio.TaskGroup() as group:
            crowd = group.create_task(flood(service.url, service.questions("ada"), rate, length))
            modest = group.create_task(
                ask_in_turn(service.url, service.questions("bob"), clients=1, seconds=length, pause_s=0.1)
            )
        return crowd.result(), modest.result()

    log_bytes = service.log.stat().st_size
    with service.watch() as watch:
        crowd, modest = asyncio.run(run())
    recovery_s = service.require_usual_speed(usual.quantile_s(50))
    print(f"capacity: {rate / 10:.0f} answers/s; usual: {usual}\nflood of {rate:.0f}/s: {crowd}")
    print(f"another key meanwhile: {modest}\ngrowth in MB: {watch.growth_mb()}\nrecovery: {recovery_s:.2f} s")
    record(
        promise="every request of a flood gets exactly one answer", runs=crowd.sent, lost=crowd.cut.total()
    )
    require_drained(redis)
    assert not crowd.cut and crowd.responses.total() == crowd.sent
    assert set(crowd.responses) <= {200, 429, 503}
    assert crowd.without_wait == 0
    assert crowd.responses[200] and crowd.responses[429]
    if (
        long_form
    ):  # a short flood begins before the service is as slow as it was when its capacity was measured
        assert crowd.responses[429] > crowd.responses[200]
    # In the eyes of the web process: beside other tests, clients are slow to send, and to notice their answers.
    accepted_ms = service.read_durations_ms(since=log_bytes)
    assert accepted_ms and max(accepted_ms) <= 1000 * (TIMEOUT_S + 5)
    for name, limit_mb in {"web": 100, "worker": 100, "redis": 30}.items():
        assert watch.growth_mb()[name] < limit_mb, name
    refused = modest.sent - modest.responses[200]
    assert modest.responses[200] and refused <= max(2, modest.sent // 4), str(modest)


def test_slow_clients_are_cut_and_hold_up_nobody(
    service: Service, redis: Redis, long_form: bool, record: Callable[..., None]
) -> None:
    each = 24 if long_form else 8
    # Ten megabytes, which is more than the system takes off the hands of the web process.
    job_id = put_job(redis, events=256, event_bytes=40_000)
    get, post = (
        make_request("GET", "/jobs", **service.headers["ada"]),
        make_request("POST", "/attribute", {"a": " " * 9999}, **service.headers["ada"]),
    )
    head, body_start = get.removesuffix(b"\r\n"), post[:-9000]

    async def send_slowly(start: bytes, piece: bytes, first: bytes = b"") -> bytes:
        async with Connection.open(service.url) as connection:
            if first:
                await connection.exchange(first)
            sending = asyncio.create_task(connection.trickle(start, piece, CLIENT_TIMEOUT_S / 5))
            try:
                return await connection.read_until_cut(GENEROUS_S)
            finally:
                sending.cancel()

    async def read_slowly(requests: bytes, pause_s: float) -> bytes:
        async with Connection.open(service.url, buffer_bytes=4096) as connection:
            connection.writer.write(requests)
            end, received = time.monotonic() + 3 * CLIENT_TIMEOUT_S, b""
            while time.monotonic() < end:
                await asyncio.sleep(pause_s)
                received += await connection.reader.read(1)
            return received + await connection.read_until_cut(GENEROUS_S)

    async def run() -> tuple[Tally, dict[str, list[bytes]]]:
        events = make_request("GET", f"/jobs/{job_id}/events", **service.headers["ada"])
        kinds = {
            "connects only": lambda: send_slowly(b"", b""),
            "head": lambda: send_slowly(head, b"a: b\r\n"),
            "head after a request": lambda: send_slowly(head, b"a: b\r\n", get),
            "body": lambda: send_slowly(body_start, b" "),
            "body of a refused request": lambda: send_slowly(body_start.replace(b"Bearer", b"Bear"), b" "),
            "a byte at a time": lambda: read_slowly(8 * make_request("GET", LARGE_FILE), 0.2),
            "no event at all": lambda: read_slowly(events, 3 * CLIENT_TIMEOUT_S),
        }
        async with asyncio.TaskGroup() as group:
            asking = ask_in_turn(service.url, service.questions("bob"), 1, 4 * CLIENT_TIMEOUT_S, 0.05)
            others = group.create_task(asking)
            slow = {
                name: [group.create_task(kind()) for _ in range(3 if name == "no event at all" else each)]
                for name, kind in kinds.items()
            }
        return others.result(), {name: [task.result() for task in tasks] for name, tasks in slow.items()}

    with service.watch() as watch:
        others, received = asyncio.run(run())
    print(f"others: {others}\ngrowth in MB: {watch.growth_mb()}, at most {watch.peak['web'][1]} files")
    refused = others.sent - others.responses[200]
    record(
        promise="slow clients hold up nobody",
        runs=others.sent,
        kills=sum(map(len, received.values())),
        lost=refused,
    )
    assert not refused and others.sent
    assert not any(received["connects only"] + received["head"] + received["head after a request"])
    assert all(answer.startswith(b"HTTP/1.1 408 ") for answer in received["body"])
    assert all(answer.startswith(b"HTTP/1.1 401 ") for answer in received["body of a refused request"])
    size = len(asyncio.run(send(service.url, make_request("GET", LARGE_FILE))).body)
    assert all(len(answer) < 8 * size for answer in received["a byte at a time"])
    assert all(b"event: state" in answer for answer in received["no event at all"])
    assert watch.growth_mb()["web"] < 100
    redis.delete(redis_keys.job_key(job_id), redis_keys.events_key(job_id))
    wait_until(lambda: watch.measure()["web"][1] <= watch.before["web"][1] + 64, "the files are closed", 10)


def test_clients_that_vanish_leave_nothing_behind(
    service: Service,
    redis: Redis,
    seeded: random.Random,
    long_form: bool,
    record: Callable[..., None],
) -> None:
    disconnects = 10_000 if long_form else 300
    job_id = put_job(redis)
    source = service.questions("bob")
    requests = [
        lambda: next(source),
        lambda: make_request("GET", f"/jobs/{job_id}/events", **service.headers["ada"]),
        lambda: make_request(
            "POST",
            "/attribute/batch",
            {"queries": [{"index": INDEX, "prompt": f"{n}", "completion": " b"} for n in range(20)]},
            **service.headers["bob"],
        ),
    ]

    async def vanish(number: int) -> None:
        slots = asyncio.Semaphore(24)

        async def connect_and_vanish() -> None:
            async with slots, Connection.open(service.url) as connection:
                (make,) = seeded.choices(requests, (8, 1, 1))
                request = make()
                cut = seeded.choice([seeded.randrange(len(request)), *4 * [len(request)]])
                connection.writer.write(request[:cut])
                await asyncio.sleep(seeded.choice([0, 1e-3, 1e-2, 1e-1]) * seeded.random())

        async with asyncio.TaskGroup() as group:
            for _ in range(number):
                group.create_task(connect_and_vanish())

    def count_leftovers() -> int:
        """Returns how many keys of Redis belong to queries, apart from the bell and the turns."""
        names = [*redis.scan_iter(f"{redis_keys.QUERY_PREFIX}*"), *redis.scan_iter("bergson:queries:*")]
        return sum(not str(name).endswith(("bell", "turns")) for name in names)

    asyncio.run(vanish(100))  # fills the pools of connections to Redis
    wait_until(lambda: not count_leftovers(), "the queries are withdrawn")
    with service.watch() as watch:
        keys_before = redis.dbsize()
        asyncio.run(vanish(disconnects))
        wait_until(lambda: not count_leftovers(), "the queries are withdrawn", TIMEOUT_S / 2)
    after = []
    for _ in range(20):
        request = next(source)
        after.append(asyncio.run(send(service.url, request)))
        if after[-1].status == 200:
            require_own_answer(request, after[-1])
    lost = sum(response.status != 200 for response in after)
    print(f"growth in MB: {watch.growth_mb()}, files before {watch.before}, after {watch.measure()}")
    record(promise="clients that vanish leave nothing behind", runs=disconnects, kills=disconnects, lost=lost)
    assert not lost
    require_drained(redis)
    assert redis.dbsize() <= keys_before + 3, "bell, turns and the stream of replies may be there or not"
    assert watch.growth_mb()["web"] < 50 and watch.growth_mb()["redis"] < 20
    for name, (_, files) in watch.before.items():
        wait_until(
            lambda name=name, files=files: watch.measure()[name][1] <= files + 48, f"{name} closes", 10
        )
    redis.delete(redis_keys.job_key(job_id), redis_keys.events_key(job_id))


def test_questions_and_jobs_beside_each_other_all_end(
    service: Service, redis: Redis, long_form: bool, record: Callable[..., None]
) -> None:
    jobs, seconds = (12, 30) if long_form else (3, 3)
    queued = [
        service.client.build(f"beside-{number}", **service.system.build_body()) for number in range(jobs)
    ]
    tally = asyncio.run(ask_in_turn(service.url, service.questions("bob"), clients=4, seconds=seconds))
    ended = [wait_for_end(service.client, job, 120) for job in queued]
    print(f"questions: {tally}")
    failed = sum(job.state != "succeeded" for job in ended)
    unanswered = tally.sent - tally.responses[200]
    record(promise="queries and jobs all end", runs=tally.sent + jobs, lost=failed + unanswered)
    assert not failed and not unanswered
    require_drained(redis)
