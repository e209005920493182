"""Starts Redis, workers and the web service as child processes and makes sure that none of them is left behind.

A process that ends by itself while the system waits is started again (`service.cli.support.restarts`), and so is the
embedded Redis (`worker.queue.embedded_redis`).
"""

import logging
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Final, Literal, Self, cast

import httpx
from redis import RedisError

from bergson_core.errors import Unavailable
from bergson_core.utils.child_process import (
    child_environment,
    command_tied_to_parent,
    describe_end,
    python_module_command,
)
from bergson_core.utils.disk_errors import translate_disk_errors
from bergson_core.utils.private_directory import prepare_private_directory
from service.cli.support.console import print_warning
from service.cli.support.restarts import Restarter, with_article
from service.http.server_socket import open_server_socket
from service.settings import ServiceSettings, describe_unknown_variables
from worker.queue import embedded_redis
from worker.queue.embedded_redis import redis_url
from worker.queue.redis_client import connect
from worker.queue.redis_keys import WORKERS
from worker.telemetry.logs import make_formatter

_WEB: Final = "web service"
_CHECK_INTERVAL_S: Final = 0.2
_START_TIMEOUT_S: Final = 120.0
_STOP_TIMEOUT_S: Final = 20.0


@dataclass(frozen=True)
class ProcessGroup:
    """The processes of a system.

    Attributes:
        url: Address of the web service.
        redis_url: URL of Redis.
        processes: The running processes by name.
        launch: Starts the process of a name.
        log: The log that the processes write to.
        lease_s: Seconds after which another worker takes the job of one that has died.
    """

    url: str
    redis_url: str
    processes: dict[str, subprocess.Popen]
    launch: Callable[[str], subprocess.Popen]
    log: "_ProcessLog | None" = None
    lease_s: float = 60.0

    def require_running(self) -> None:
        """Checks that no process has ended.

        Raises:
            Unavailable: A process has ended.
        """
        for name, process in self.processes.items():
            if process.poll() is not None:
                raise self.unavailable(f"{with_article(name)} {describe_end(process.returncode)}")

    def unavailable(self, reason: str) -> Unavailable:
        """Returns the error for a system that does not run, with the end of the log."""
        return Unavailable(
            f"{reason}; the end of {self.log.path}:\n{self.log.last_lines()}"
            if self.log
            else f"{reason}; the messages above say why"
        )

    def wait(self) -> None:
        """Waits until Ctrl-C or SIGTERM. A process that ends by itself meanwhile is started again.

        Raises:
            Unavailable: A process ends again and again before it works.
        """
        note = f"; a job that it had goes on after BERGSON_LEASE_S ({self.lease_s:g} s)"
        restarter = Restarter(self.processes, self.launch, self._works, self.tell, note)
        try:
            while True:
                restarter.check()
                time.sleep(_CHECK_INTERVAL_S)
        except KeyboardInterrupt:
            return
        except Unavailable as error:
            raise self.unavailable(str(error)) from error

    def has_ready_worker(self) -> bool:
        """Returns whether one of the workers has been ready. Unlike `/readyz`, it leaves no line in the log."""
        return any(self._works(name, process.pid) for name, process in self.processes.items() if name != _WEB)

    def _works(self, name: str, pid: int) -> bool:
        """Returns whether the web service answers, or whether the worker with this process id has been ready."""
        try:
            if name == _WEB:
                return httpx.get(f"{self.url}/livez", timeout=1, trust_env=False).status_code == 200
            with connect(self.redis_url) as client:
                worker_ids = cast("set[str]", client.smembers(WORKERS))
            return any(worker_id.startswith(f"{socket.gethostname()}-{pid}-") for worker_id in worker_ids)
        except (httpx.TransportError, RedisError):
            return False

    def tell(self, message: str) -> None:
        """Prints a warning, and writes it to the log as well; a full disk keeps no process from being started again."""
        with suppress(OSError):
            print_warning(message)
        if self.log:
            with suppress(OSError):
                self.log.write(message)


@contextmanager
def running_system(
    settings: ServiceSettings, workers: int = 1, log: Path | None = None
) -> Iterator[ProcessGroup]:
    """Runs the whole service, and yields once it is ready to answer. All processes end with the context.

    Args:
        settings: Settings of the service, whose `redis_url` decides whether an embedded Redis is started.
        workers: Number of workers.
        log: File that the processes write to, instead of this process's standard error.

    Raises:
        InvalidInput: A directory to allow does not exist.
        Unavailable: Another program listens on the port, another process runs the Redis of the data directory, or a
            process did not start; the message then has the end of the log.
    """
    # A program that listens there would answer for the web service before that has found the port taken.
    open_server_socket(settings).close()
    for warning in filter(None, (describe_unknown_variables(), prepare_private_directory(settings.data_dir))):
        print_warning(warning)
    settings.require_roots()
    # A script that starts this process in the background with "&" makes it ignore SIGINT, so both handlers are set.
    for signal_number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(signal_number, _interrupt)
    with ExitStack() as stack:
        url = stack.enter_context(redis_url(settings, as_owner=True))
        environment = child_environment(REDIS_URL=url, PYTHONUNBUFFERED="1")
        if log:  # The person who started this process reads the file.
            environment.setdefault("BERGSON_LOG_FORMAT", "text")
        is_text = settings.log_format == "text" or "log_format" not in settings.model_fields_set
        process_log = _ProcessLog.open(log, "text" if is_text else "json") if log else None
        output = stack.enter_context(process_log.file) if process_log else None

        def launch(name: str) -> subprocess.Popen:
            return subprocess.Popen(
                command_tied_to_parent(python_module_command("service" if name == _WEB else "worker")),
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,  # Ctrl-C reaches only this process, which stops the others in order.
            )

        processes: dict[str, subprocess.Popen] = {}
        stack.callback(_stop, processes)
        for name in (_WEB, *(f"worker {k + 1}" for k in range(workers))):
            processes[name] = launch(name)
        host = f"[{settings.host}]" if ":" in settings.host else settings.host
        address = f"http://{host}:{settings.port}"
        system = ProcessGroup(address, url, processes, launch, process_log, settings.lease_s)
        stack.enter_context(_telling_of_redis(system.tell))
        _wait_until_ready(system)
        yield system


def _wait_until_ready(system: ProcessGroup) -> None:
    deadline = time.monotonic() + _START_TIMEOUT_S
    while time.monotonic() < deadline:
        system.require_running()
        try:
            if (
                system.has_ready_worker()
                and httpx.get(f"{system.url}/readyz", timeout=5, trust_env=False).status_code == 200
            ):
                system.require_running()
                return
        except httpx.TransportError:
            pass
        time.sleep(0.1)
    raise system.unavailable(
        f"the service at {system.url} was not ready within {_START_TIMEOUT_S:.0f} seconds"
    )


@contextmanager
def _telling_of_redis(tell: Callable[[str], None]) -> Iterator[None]:
    """Passes on what is logged of the embedded Redis, while the context is open."""

    class Handler(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            tell(record.getMessage())

    handler = Handler(logging.WARNING)
    embedded_redis.logger.addHandler(handler)
    try:
        yield
    finally:
        embedded_redis.logger.removeHandler(handler)


def _stop(processes: dict[str, subprocess.Popen]) -> None:
    """Asks all processes to end, and kills those that have not ended in time."""
    for process in processes.values():
        process.terminate()
    deadline = time.monotonic() + _STOP_TIMEOUT_S
    for process in processes.values():
        try:
            process.wait(max(0.1, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


@dataclass(frozen=True)
class _ProcessLog:
    """A file that processes append their messages to."""

    path: Path
    file: IO[bytes]
    start: int
    """Size of the file before the processes were started."""
    formatter: logging.Formatter
    """Formats lines as the processes format theirs."""

    @classmethod
    def open(cls, path: Path, log_format: Literal["json", "text"]) -> Self:
        with translate_disk_errors(path.parent):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch(mode=0o600)
            return cls(path, path.open("ab", buffering=0), path.stat().st_size, make_formatter(log_format))

    def write(self, message: str) -> None:
        """Adds a warning to the file, as a line like those of the processes."""
        level = {"levelno": logging.WARNING, "levelname": "WARNING"}
        record = logging.makeLogRecord({"name": __name__, "msg": message, **level})
        self.file.write(f"{self.formatter.format(record)}\n".encode())

    def last_lines(self, count: int = 12) -> str:
        """Returns the last lines that were written since the start."""
        written = self.path.read_bytes()[self.start :].decode(errors="replace")
        return "\n".join(written.splitlines()[-count:])


def _interrupt(signal_number: int, frame: object) -> None:
    raise KeyboardInterrupt
