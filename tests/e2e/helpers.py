"""Helpers of the tests with real processes: the command line, free ports, a request for a build."""

import os
import subprocess
import sys
from pathlib import Path

import psutil

BERGSON = str(Path(sys.executable).with_name("bergson"))


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
