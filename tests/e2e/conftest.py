"""Starts the whole service as real processes: embedded Redis, workers and web service."""

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from service.cli.support.process_group import ProcessGroup, running_system
from service.settings import ServiceSettings
from tests import tiny

BERGSON = str(Path(sys.executable).with_name("bergson"))


def free_port() -> int:
    """Returns a TCP port on which nothing listens."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        return listening.getsockname()[1]


def run_bergson(*arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
    """Runs the command line in a process of its own and waits for its end."""
    return subprocess.run(
        [BERGSON, *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
        env={**os.environ, "COLUMNS": "160", **environment},
    )


@pytest.fixture
def start_service(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., ProcessGroup]]:
    """`start_service(workers=1, **settings)` starts the service on a free port, with its data in tmp_path.

    It stops at the end of the test.
    """
    contexts = []

    def start(workers: int = 1, **settings: object) -> ProcessGroup:
        values = {"data_dir": tmp_path, "port": free_port(), "lease_s": 3, "heartbeat_s": 0.5, **settings}
        for name, value in values.items():
            monkeypatch.setenv(f"BERGSON_{name.upper()}", str(value))
        context = running_system(ServiceSettings(), workers, log=tmp_path / "processes.log")
        contexts.append(context)
        return context.__enter__()

    handler = signal.getsignal(signal.SIGTERM)
    yield start
    for context in contexts:
        context.__exit__(None, None, None)
    signal.signal(signal.SIGTERM, handler)


@pytest.fixture
def sources(tmp_path: Path) -> Path:
    """A directory with a model and forty documents, inside the data directory, where requests may name them."""
    tiny.save_model(tmp_path / "model")
    tiny.save_documents(tmp_path / "documents.jsonl")
    return tmp_path


def build_request(sources: Path, **changes: object) -> dict:
    """Returns the body of a request that builds an index of the forty documents."""
    return {
        "model": str(sources / "model"),
        "dataset": {"path": str(sources / "documents.jsonl")},
        "columns": {"id": "id", "metadata": ["source"]},
        "gradients": {"projection_dim": 4},
    } | changes


def find_processes(directory: Path) -> list[psutil.Process]:
    """Returns the processes that a test has started: those with `directory` in their environment or command."""
    processes = []
    for process in psutil.process_iter():
        try:
            words = [*process.cmdline(), process.environ().get("BERGSON_DATA_DIR", "")]
        except (psutil.AccessDenied, psutil.NoSuchProcess, psutil.ZombieProcess):
            continue
        if process.pid != os.getpid() and any(str(directory) in word for word in words):
            processes.append(process)
    return processes
