"""`bergson up` starts what dies again, and goes on answering meanwhile."""

import os
import re
import signal
import subprocess
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

from service.client import Client
from tests import tiny
from tests.e2e.helpers import BERGSON, build_request, find_processes
from tests.faults.support.steady_queries import SteadyQueries, steady_queries
from tests.faults.support.system import TIMEOUT_S, wait_for_end, wait_until
from tests.worker.servers import free_port

pytestmark = pytest.mark.e2e


@dataclass
class RunningCommand:
    """`bergson up` as a process, with its address, its data and what it has printed."""

    process: subprocess.Popen
    url: str
    directory: Path

    @property
    def warnings(self) -> str:
        return (self.directory / "stderr").read_text()

    def find(self, module: str) -> list[psutil.Process]:
        """Returns the running processes of a module, or the Redis servers."""
        found = []
        for process in find_processes(self.directory):
            with suppress(psutil.NoSuchProcess):  # it may end while it is looked at
                if module in process.cmdline()[-1:] or module in process.name():
                    found.append(process)
        return found

    def kill(self, process: psutil.Process, module: str) -> psutil.Process:
        """Kills a process, and returns the one that was started in its place."""
        known = {other.pid for other in self.find(module)}
        process.kill()
        return wait_until(
            lambda: next((other for other in self.find(module) if other.pid not in known), None),
            f"{module} is started again",
        )


@pytest.fixture
def start_up(tmp_path: Path) -> Iterator[Callable[..., RunningCommand]]:
    """`start_up(workers=2)` runs `bergson up` and waits until it is ready."""
    started: list[RunningCommand] = []

    def start(workers: int) -> RunningCommand:
        tiny.save_model(tmp_path / "model")
        tiny.save_documents(tmp_path / "documents.jsonl")
        port = free_port()
        environment = {
            "BERGSON_DATA_DIR": str(tmp_path),
            "BERGSON_PORT": str(port),
            "BERGSON_QUERY_LEASE_S": "1",
            "BERGSON_LEASE_S": "3",
            "BERGSON_HEARTBEAT_S": "0.5",
            "BERGSON_CACHE_BYTES": "0",
            "OMP_NUM_THREADS": "1",
        }
        with (tmp_path / "stdout").open("wb") as stdout, (tmp_path / "stderr").open("wb") as stderr:
            process = subprocess.Popen(
                [BERGSON, "up", "--workers", str(workers)],
                env=os.environ | environment,
                stdout=stdout,
                stderr=stderr,
                start_new_session=True,
            )
        command = RunningCommand(process, f"http://127.0.0.1:{port}", tmp_path)
        started.append(command)
        wait_until(
            lambda: process.poll() is not None or "dashboard" in (tmp_path / "stdout").read_text(),
            "it is ready",
        )
        assert process.poll() is None, command.warnings
        return command

    yield start
    for command in started:
        command.process.send_signal(signal.SIGTERM)
        command.process.wait(TIMEOUT_S)
        assert find_processes(command.directory) == []


def kill_a_worker(command: RunningCommand, client: Client, questions: SteadyQueries) -> None:
    """Kills one of two ready workers, and waits until the new one is ready and ten more questions are answered."""
    wait_until(lambda: len(client.workers()) == 2, "both workers are ready")
    before = len(questions.answered)
    new = command.kill(command.find("worker")[0], "worker")
    wait_until(lambda: new.pid in [worker.pid for worker in client.workers()], "the new worker is ready")
    wait_until(lambda: len(questions.answered) > before + 10, "questions are answered")


def test_what_is_killed_is_started_again_while_questions_are_answered(start_up, long_form):
    command = start_up(workers=2)
    with Client(command.url) as client:
        job = client.build("facts", **build_request(command.directory))
        assert wait_for_end(client, job).state == "succeeded"
        wait_until(lambda: len(client.workers()) == 2, "both workers are ready")
        with steady_queries(command.url, "facts") as questions:
            for _ in range(10 if long_form else 1):
                kill_a_worker(command, client, questions)
        assert questions.errors == []
        assert re.search(
            r"warning: worker [12] was killed by SIGKILL; it is started again in 0.5 s", command.warnings
        )
        assert "was killed by SIGKILL" in (command.directory / "processes.log").read_text()

        command.kill(command.find("redis-server")[0], "redis-server")
        command.kill(command.find("service")[0], "service")
        wait_until(lambda: client.attribute("facts", "Person 3", " lives.").results, "a question is answered")
        assert "the web service was killed by SIGKILL" in command.warnings
        assert (
            "warning: the embedded Redis was killed by SIGKILL; it is started again in 1 s"
            in command.warnings
        )

    os.kill(command.find("worker")[0].pid, signal.SIGKILL)
    wait_until(lambda: command.warnings.count("warning: worker") >= 2, "the pause begins")
    command.process.send_signal(signal.SIGINT)
    assert command.process.wait(TIMEOUT_S) == 0
