"""Clients from each kind of URL: of servers with TLS, of a user with few rights, and behind Sentinel."""

import asyncio
import re
import signal
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import ExitStack, asynccontextmanager
from pathlib import Path
from uuid import uuid4

import pytest
from redis import RedisError
from redis.exceptions import NoPermissionError

from bergson_core.errors import BergsonError, InvalidInput, RedisUnavailable
from service.auth.api_keys import Caller
from service.auth.rate_limits import RateLimiter, redis_storage
from service.queue.broker import Broker
from tests.worker.fakes import FakeCore, make_query, make_spec, publish_index
from tests.worker.helpers import REPOSITORY, TIMEOUT_S, make_build_job, wait_until, wait_until_async
from tests.worker.servers import (
    ACL_RULE,
    free_port,
    make_certificate,
    read_refusals,
    restrict_user,
    running_server,
    server_options,
)
from worker.messages import EstimateJob
from worker.process.runner import Runner
from worker.queue.job_queue import WorkerQueue
from worker.queue.redis_client import connect, connect_async
from worker.settings import Settings

Require = Callable[..., str]


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(data_dir=tmp_path / "data", heartbeat_s=0.2, poll_s=0.02)


@pytest.fixture
def server(require: Require) -> str:
    return require("redis-server")


@asynccontextmanager
async def running_system(url: str, settings: Settings) -> AsyncIterator[Broker]:
    """Yields a broker at `url`, with a worker in a thread that has the index `facts`."""
    settings = settings.model_copy(update={"redis_url": url, "lease_s": 5})
    publish_index(settings.indexes_dir / "facts")
    with connect(url) as client:
        runner = Runner(WorkerQueue(client, settings, f"w-{uuid4().hex[:6]}"), settings, "fake")
        thread = threading.Thread(target=runner.run)
        thread.start()
        try:
            async with Broker.connect(settings) as broker:

                async def has_worker() -> bool:  # on a busy machine the first handshakes may take seconds
                    try:
                        return bool(await broker.list_workers())
                    except RedisUnavailable:
                        return False

                await wait_until_async(has_worker)
                yield broker
        finally:
            runner.stop()
            await asyncio.to_thread(thread.join, TIMEOUT_S)
    assert not thread.is_alive()


async def use_everything(broker: Broker) -> None:
    """Does everything that web processes and workers do in Redis."""
    await broker.ping()
    assert (await broker.ask(make_query(), "r", 20)).index == "facts"
    for name in ("news", "old"):
        job = await broker.submit(make_build_job(name, make_spec()), idempotency_key=f"key-{name}")
        assert [record.state async for _, record in broker.iter_events(job.job_id)][-1] == "succeeded"
    assert len((await broker.list_jobs(cursor=None))[0]) == 2
    await broker.estimate(EstimateJob(job_id=uuid4().hex, request_id="r", spec=make_spec()), 20)
    limits = RateLimiter(redis_storage(broker.pool))
    await limits.start_call(Caller(id="0" * 12, name="ada", rate="3/minute"))


async def test_tls_connects_to_a_server_with_a_trusted_certificate_only(
    server: str, require: Require, tmp_path: Path, core: FakeCore, settings: Settings
):
    certificate, key = make_certificate(require("openssl"), tmp_path)
    port = free_port()
    tls = {"tls_cert_file": certificate, "tls_key_file": key, "tls_ca_cert_file": certificate}
    command = [server, *server_options(port=0, tls_port=port, tls_auth_clients="no", **tls)]
    url = f"rediss://127.0.0.1:{port}/0?ssl_ca_certs={certificate}"
    with running_server(command, tmp_path / "redis", url):
        async with running_system(url, settings) as broker:
            await use_everything(broker)
        for other in (f"rediss://127.0.0.1:{port}", f"redis://127.0.0.1:{port}"):
            with pytest.raises(RedisError), connect(other) as client:
                client.ping()


async def test_a_user_with_the_rights_that_the_guide_lists_is_enough(
    server: str, tmp_path: Path, core: FakeCore, settings: Settings
):
    port = free_port()
    url = f"redis://127.0.0.1:{port}/0"
    with running_server([server, *server_options(port=port)], tmp_path / "redis", url):
        restricted_url = restrict_user(url)
        async with running_system(restricted_url, settings) as broker:
            await use_everything(broker)
        assert read_refusals(url) == []
        for forbidden in (["SET", "elsewhere", 1], ["FLUSHALL"], ["KEYS", "*"], ["CONFIG", "GET", "*"]):
            with pytest.raises(NoPermissionError), connect(restricted_url) as client:
                client.execute_command(*forbidden)


def test_the_guide_lists_the_commands_of_all_scripts():
    scripts = [path.read_text() for path in (REPOSITORY / "worker" / "queue" / "lua").glob("*.lua")]
    commands = re.findall(r"redis\.p?call\('([A-Z]+)'", "".join(scripts))
    assert len(scripts) == 7 and len(commands) > 40
    assert {f"+{command.lower()}" for command in commands} <= set(ACL_RULE.split())


@pytest.fixture(params=["redis", "rediss"])
def sentinel(
    request: pytest.FixtureRequest, server: str, require: Require, tmp_path: Path
) -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    """URL of a master with a replica and a sentinel, with passwords, with and without TLS; and the master's process."""
    master, replica, guard, dead = (free_port() for _ in range(4))
    port_option, query = "port", ""
    server_settings: dict[str, object] = {
        "requirepass": "secret",
        "masterauth": "secret",
        "repl_diskless_sync_delay": 0,  # The master would wait five seconds for more replicas.
    }
    if request.param == "rediss":
        certificate, key = make_certificate(require("openssl"), tmp_path)
        port_option, query = "tls_port", f"ssl_ca_certs={certificate}"
        server_settings |= {"port": 0, "tls_replication": "yes", "tls_auth_clients": "no"}
        server_settings |= {
            "tls_cert_file": certificate,
            "tls_key_file": key,
            "tls_ca_cert_file": certificate,
        }
    sentinel_arguments = server_options(**server_settings | {"requirepass": "watchword", port_option: guard})
    configuration = tmp_path / "sentinel.conf"
    configuration.write_text(
        f"sentinel monitor facts 127.0.0.1 {master} 1\nsentinel auth-pass facts secret\n"
        "sentinel down-after-milliseconds facts 500\nsentinel failover-timeout facts 5000\n"
    )
    urls = [
        f"{request.param}://:{password}@127.0.0.1:{port}/0?{query}"
        for password, port in (("secret", master), ("secret", replica), ("watchword", guard))
    ]
    commands = [
        [server, *server_options(**server_settings, **{port_option: master})],
        [
            server,
            *server_options(**server_settings, **{port_option: replica}, replicaof=f"127.0.0.1 {master}"),
        ],
        [server, str(configuration), "--sentinel", *sentinel_arguments],
    ]
    with ExitStack() as stack:
        process, *_ = [
            stack.enter_context(running_server(command, tmp_path / f"server-{number}", url))
            for number, (command, url) in enumerate(zip(commands, urls, strict=True))
        ]
        with connect(urls[2]) as client:
            wait_until(lambda: client.sentinel_slaves("facts"))
        with connect(urls[1]) as client:
            wait_until(lambda: client.info("replication")["master_link_status"] == "up")
        sentinels = f"127.0.0.1:{dead},127.0.0.1:{guard}"
        yield (
            f"{request.param}+sentinel://:secret@{sentinels}/facts/0?sentinel_password=watchword&{query}",
            process,
        )


async def test_the_system_goes_on_when_the_master_dies_and_sentinel_names_another(
    sentinel: tuple[str, subprocess.Popen[bytes]],
    core: FakeCore,
    settings: Settings,
    caplog: pytest.LogCaptureFixture,
):
    url, master = sentinel
    async with running_system(url, settings) as broker:
        await use_everything(broker)
        master.send_signal(signal.SIGKILL)

        async def is_answered() -> bool:
            try:
                return (await broker.ask(make_query(), "r", 2)).index == "facts"
            except BergsonError:
                return False

        await wait_until_async(is_answered)
        job = await broker.submit(make_build_job("later", make_spec()))

        async def has_succeeded() -> bool:  # on a busy machine Sentinel may be late once more
            try:
                return [record.state async for _, record in broker.iter_events(job.job_id)][-1] == "succeeded"
            except RedisUnavailable:
                return False

        await wait_until_async(has_succeeded)
    assert "Redis does not answer" in caplog.text
    assert "secret" not in caplog.text and "watchword" not in caplog.text


@pytest.mark.parametrize(
    "url",
    [
        "http://ada:s3cret@there",
        "redis://ada:s3cret/word@there",
        "redis://ada:s3cret@there:port",
        "redis://ada:s3cret@there?db=first",
        "redis://ada:s3cret@there?colour=s3cret",
        "redis+sentinel://ada:s3cret@there",
        "redis+sentinel://ada:s3cret@there:port/facts",
        "redis+sentinel://ada:s3cret@there/facts?colour=s3cret",
    ],
)
def test_a_malformed_url_is_refused_without_quoting_it(url: str):
    for make in (connect, lambda url: connect_async(url, 1)):
        with pytest.raises(InvalidInput, match="REDIS_URL") as refused:
            make(url)
        assert "s3cret" not in f"{refused.value!r} {refused.value.__cause__!r}"


@pytest.mark.parametrize("module", ["worker", "service"])
def test_a_process_that_cannot_use_its_url_says_so_in_one_line(module: str, tmp_path: Path):
    environment = {"REDIS_URL": "redis://ada:s3cret/word@there", "BERGSON_DATA_DIR": str(tmp_path)}
    command = [sys.executable, "-m", module]
    ran = subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, timeout=60)
    assert ran.returncode == 1
    (line,) = ran.stderr.strip().splitlines()
    assert "REDIS_URL" in line and "s3cret" not in line


async def test_the_error_of_a_wrong_password_does_not_contain_it(
    server: str, tmp_path: Path, settings: Settings
):
    port = free_port()
    right, wrong = (f"redis://:{password}@127.0.0.1:{port}" for password in ("secret", "s3cret"))
    with running_server(
        [server, *server_options(port=port, requirepass="secret")], tmp_path / "redis", right
    ):
        async with Broker.connect(settings.model_copy(update={"redis_url": wrong})) as broker:
            with pytest.raises(RedisUnavailable, match="password") as refused:
                await broker.ping()
        assert "s3cret" not in str(refused.value)


def test_the_url_does_not_override_our_own_options():
    client = connect("redis://there?protocol=3&decode_responses=no&retry=9")
    assert client.connection_pool.connection_kwargs["protocol"] == 2
    assert client.connection_pool.connection_kwargs["decode_responses"] is True
