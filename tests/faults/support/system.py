"""`System`: Redis, web processes and workers as real processes, which can be killed, frozen and restarted."""

import signal
import subprocess
import time
from collections.abc import Callable
from contextlib import suppress
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, Self

import httpx
import psutil
from redis import Redis

from service.client import Client
from tests import tiny
from tests.faults.support.worker_process import Fault, enter_process, run_worker
from tests.processes import forkserver_context
from tests.worker.helpers import is_answering
from tests.worker.servers import free_port
from worker.messages import FINAL_STATES, JobRecord
from worker.queue.redis_client import connect

TIMEOUT_S = 60.0


class SystemProcess:
    """A process of the system, by its id."""

    def __init__(self, pid: int, log: Path):
        self.pid, self.log = pid, log
        self._process = psutil.Process(pid)

    def kill(self) -> None:
        """Kills the process, and waits until it has ended."""
        self.send(signal.SIGKILL)
        self.wait()

    def terminate(self) -> None:
        """Sends SIGTERM, without waiting."""
        self.send(signal.SIGTERM)

    def freeze(self) -> None:
        """Sends SIGSTOP."""
        self.send(signal.SIGSTOP)

    def resume(self) -> None:
        """Sends SIGCONT."""
        self.send(signal.SIGCONT)

    def send(self, number: int) -> None:
        """Sends a signal, unless the process has ended."""
        with suppress(psutil.NoSuchProcess):
            self._process.send_signal(number)

    def is_alive(self) -> bool:
        """Returns whether the process exists and is no zombie."""
        return self._status() not in (psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD)

    def is_frozen(self) -> bool:
        """Returns whether the process has been stopped by SIGSTOP."""
        return self._status() == psutil.STATUS_STOPPED

    def wait(self, timeout_s: float = TIMEOUT_S) -> None:
        """Waits until the process has ended."""
        wait_until(lambda: not self.is_alive(), f"process {self.pid} ends", timeout_s)

    def memory_bytes(self) -> int:
        """Returns the resident memory of the process in bytes, or 0 if it has ended."""
        try:
            return self._process.memory_info().rss
        except psutil.NoSuchProcess:
            return 0

    def _status(self) -> str:
        try:
            return self._process.status()
        except psutil.NoSuchProcess:
            return psutil.STATUS_DEAD


class System:
    """A whole service below one directory. All its processes end with the context.

    Attributes:
        plan: Directory of the faults that are planned for jobs (`worker_process.plan_fault`).

    Args:
        directory: Where the data, the logs and the model with its forty documents are.
        redis_server: Path of the program redis-server. Redis writes each command to its append-only file, so that it
            can be killed and started again.
        settings: Settings of the web processes and workers, such as `lease_s`.
    """

    def __init__(self, directory: Path, redis_server: str, **settings: object):
        self.directory, self.data_dir, self.plan = directory, directory / "data", directory / "plan"
        self._redis_server, self._redis_port = redis_server, free_port()
        self.redis_url = self._direct_redis_url = f"redis://127.0.0.1:{self._redis_port}/0"
        values = {
            "data_dir": self.data_dir,
            "lease_s": 2,
            "query_lease_s": 1,
            "heartbeat_s": 0.3,
            "poll_s": 0.05,
        }
        self.settings = {
            f"BERGSON_{name.upper()}": str(value)
            for name, value in (values | {"allowed_roots": directory} | settings).items()
        } | {"TMPDIR": str(directory / "tmp")}
        self.redis_process: SystemProcess | None = None
        self.workers: list[SystemProcess] = []
        self.web_processes: list[SystemProcess] = []
        self.urls: list[str] = []
        self._children: list[subprocess.Popen[bytes] | BaseProcess] = []

    def __enter__(self) -> Self:
        tiny.save_model(self.directory / "model")
        tiny.save_documents(self.directory / "documents.jsonl")
        self.data_dir.mkdir()
        self.plan.mkdir()
        (self.directory / "tmp").mkdir()
        self.start_redis()
        return self

    def __exit__(self, *_: object) -> None:
        for process in (
            *self.workers,
            *self.web_processes,
            *([self.redis_process] if self.redis_process else []),
        ):
            process.kill()
        for child in self._children:
            child.wait() if isinstance(child, subprocess.Popen) else child.join()

    def start_redis(self, *options: str) -> SystemProcess:
        """Starts Redis over the file that an earlier one has left, with further options of redis-server."""
        directory = self.directory / "redis"
        directory.mkdir(exist_ok=True)
        command = [self._redis_server, "--port", str(self._redis_port), "--bind", "127.0.0.1", "--save", ""]
        command += ["--appendonly", "yes", "--appendfsync", "no", "--dir", str(directory), *options]
        log = self.directory / "redis.log"
        with log.open("ab") as file:
            child = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=file, stderr=file, start_new_session=True
            )
        self._children.append(child)
        self.redis_process = SystemProcess(child.pid, log)
        wait_until(lambda: is_answering(self._direct_redis_url), "Redis answers")
        return self.redis_process

    def connect_redis(self) -> Redis:
        """Returns a client of Redis, past all proxies."""
        return connect(self._direct_redis_url)

    def start_worker(self, *faults: Fault, **settings: object) -> SystemProcess:
        """Starts a worker, which meets `faults` one after the other, each in its first job that gets there."""
        log = self.directory / f"worker-{len(self.workers) + 1}.log"
        environment = self.settings | {
            f"BERGSON_{name.upper()}": str(value) for name, value in settings.items()
        }
        environment |= {"REDIS_URL": self.redis_url, "OMP_NUM_THREADS": "1"}
        self.workers.append(self._fork(log, run_worker, environment, log, self.plan, faults))
        return self.workers[-1]

    def start_web(self, **settings: object) -> str:
        """Starts a web process, waits until it answers, and returns its URL."""
        settings = {"port": free_port(), **settings}
        values = {f"BERGSON_{name.upper()}": str(value) for name, value in settings.items()}
        log = self.directory / f"web-{len(self.web_processes) + 1}.log"
        process = self._fork(log, _run_web, self.settings | values | {"REDIS_URL": self.redis_url}, log)
        self.web_processes.append(process)
        self.urls.append(f"http://127.0.0.1:{settings['port']}")

        def is_up() -> bool:
            assert process.is_alive(), process.log.read_text()
            try:
                return httpx.get(f"{self.urls[-1]}/livez", timeout=5, trust_env=False).status_code == 200
            except httpx.TransportError:
                return False

        wait_until(is_up, "the web process answers")
        return self.urls[-1]

    def client(self, web_process: int = 0) -> Client:
        """Returns a client of one of the web processes."""
        return Client(self.urls[web_process])

    def build_body(self, **changes: object) -> dict[str, Any]:
        """Returns the fields, other than the name, of a request that builds an index of the forty documents."""
        return {
            "model": str(self.directory / "model"),
            "dataset": {"path": str(self.directory / "documents.jsonl")},
            "columns": {"id": "id", "metadata": ["source"]},
            "gradients": {"projection_dim": 4},
        } | changes

    def _fork(self, log: Path, target: Callable[..., None], *arguments: object) -> SystemProcess:
        child = forkserver_context().Process(target=target, args=arguments)
        child.start()
        self._children.append(child)
        assert child.pid is not None
        return SystemProcess(child.pid, log)


def _run_web(environment: dict[str, str], log: Path) -> None:
    """Runs a web process with these variables of the environment."""
    enter_process(environment, log)
    from service.__main__ import main

    main()


def wait_until(
    condition: Callable[[], Any], what: str, timeout_s: float = TIMEOUT_S, interval_s: float = 0.01
) -> Any:
    """Returns what `condition` returns once that is true; fails, naming `what`, after `timeout_s`."""
    end = time.monotonic() + timeout_s
    while not (value := condition()):
        assert time.monotonic() < end, f"waited {timeout_s:g} s until {what}"
        time.sleep(interval_s)
    return value


def wait_for_end(client: Client, job: str | JobRecord, timeout_s: float = TIMEOUT_S) -> JobRecord:
    """Returns the record of a job once the job has ended."""

    def read_ended() -> JobRecord | None:
        record = client.job(job)
        return record if record.state in FINAL_STATES else None

    return wait_until(read_ended, f"job {job} ends", timeout_s, interval_s=0.1)
