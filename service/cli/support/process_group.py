"""Starts Redis, workers and the web service as processes of their own, and leaves none behind."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx

from bergson_core.errors import Unavailable
from service.settings import ServiceSettings
from worker.queue.child_process import command_tied_to_parent
from worker.queue.embedded_redis import redis_url

_START_S = 120.0
_STOP_S = 20.0


@dataclass(frozen=True)
class ProcessGroup:
    """What is running. `url` is the service's."""

    url: str
    processes: dict[str, subprocess.Popen]

    def check(self) -> None:
        """Raises `Unavailable` where a process has ended by itself."""
        for name, process in self.processes.items():
            if process.poll() is not None:
                raise Unavailable(f"the {name} ended with status {process.returncode}; its messages say why")

    def wait(self) -> None:
        """Returns on Ctrl-C or SIGTERM. Raises `Unavailable` where a process ends by itself."""
        try:
            while True:
                self.check()
                time.sleep(0.2)
        except KeyboardInterrupt:
            return


@contextmanager
def running_system(
    settings: ServiceSettings, workers: int = 1, log: Path | None = None
) -> Iterator[ProcessGroup]:
    """The whole service, ready to answer; it ends with the context.

    Its processes write to `log`, or to this one's standard error. Raises `Unavailable` where one of them does
    not start, with the end of the log.
    """
    for sent in (
        signal.SIGINT,
        signal.SIGTERM,
    ):  # the first is ignored where a script has started this behind "&"
        signal.signal(sent, _interrupt)
    with ExitStack() as stack:
        url = stack.enter_context(redis_url(settings))
        environment = {**os.environ, "REDIS_URL": url, "PYTHONUNBUFFERED": "1"}
        if log:  # it is read by whoever started this
            environment.setdefault("BERGSON_LOG_FORMAT", "text")
        output = stack.enter_context(log.open("ab")) if log else None
        commands = {"web service": "service"} | {f"worker {k + 1}": "worker" for k in range(workers)}
        processes: dict[str, subprocess.Popen] = {}
        stack.callback(_stop, processes)
        for name, module in commands.items():
            processes[name] = subprocess.Popen(
                command_tied_to_parent([sys.executable, "-m", module]),
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,  # Ctrl-C is for this process, which stops them in order
            )
        host = f"[{settings.host}]" if ":" in settings.host else settings.host
        system = ProcessGroup(f"http://{host}:{settings.port}", processes)
        try:
            _await_ready(system)
        except Unavailable as error:
            raise Unavailable(f"{error}\n{_tail(log)}" if log else str(error)) from None
        yield system


def _await_ready(system: ProcessGroup) -> None:
    deadline = time.monotonic() + _START_S
    while time.monotonic() < deadline:
        system.check()
        try:
            if httpx.get(f"{system.url}/readyz", timeout=5).status_code == 200:
                return
        except httpx.TransportError:
            pass
        time.sleep(0.1)
    raise Unavailable(f"the service at {system.url} was not ready within {_START_S:.0f} seconds")


def _stop(processes: dict[str, subprocess.Popen]) -> None:
    """Asks all to finish, then insists."""
    for process in processes.values():
        process.terminate()
    deadline = time.monotonic() + _STOP_S
    for process in processes.values():
        try:
            process.wait(max(0.1, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _tail(log: Path, lines: int = 12) -> str:
    return "\n".join(log.read_text(errors="replace").splitlines()[-lines:])


def _interrupt(signum: int, frame: object) -> None:
    raise KeyboardInterrupt
