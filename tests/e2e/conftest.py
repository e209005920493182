"""Starts the whole service as real processes: embedded Redis, workers and web service."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from service.cli.support import process_group
from service.cli.support.process_group import ProcessGroup, running_system
from service.settings import ServiceSettings
from tests import tiny
from tests.processes import ForkedModule, run_script
from tests.worker.servers import free_port


@pytest.fixture
def quick_processes(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Lets the processes of a system start from one that has loaded torch, which those of `bergson up` do not.

    What a system changes in the process that starts it is as before at the end of the test.
    """
    forking = SimpleNamespace(**vars(subprocess) | {"Popen": ForkedModule})
    monkeypatch.setattr(process_group, "subprocess", forking)
    environment = dict(os.environ)
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield
    for number, handler in handlers.items():
        signal.signal(number, handler)
    os.environ.clear()
    os.environ.update(environment)


@pytest.fixture
def start_service(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, quick_processes: None
) -> Iterator[Callable[..., ProcessGroup]]:
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

    yield start
    for context in contexts:
        context.__exit__(None, None, None)


@pytest.fixture
def sources(tmp_path: Path) -> Path:
    """A directory with a model and forty documents, inside the data directory, where requests may name them."""
    tiny.save_model(tmp_path / "model")
    tiny.save_documents(tmp_path / "documents.jsonl")
    return tmp_path


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A home directory with the files that the demo leaves behind."""
    demo = tmp_path / ".cache" / "bergson" / "demo" / "people-400-seed-0"
    tiny.save_model(demo / "model")
    (demo / "corpus").mkdir()
    documents = [
        {"id": f"doc-{k}", "text": text, "fact": f"fact-{k}"} for k, text in enumerate(tiny.texts(20))
    ]
    queries = [
        {"prompt": row["text"][:6], "completion": row["text"][6:], "fact": row["fact"]} for row in documents
    ]
    for name, rows in (("documents", documents), ("queries", queries)):
        lines = "".join(json.dumps(row) + "\n" for row in rows)
        (demo / "corpus" / f"{name}.jsonl").write_text(lines)
    return tmp_path


@pytest.fixture
def run(home: Path) -> Callable[..., str]:
    """`run(*command)` runs a command in the home directory, and returns what it prints."""

    def run(*command: str) -> str:
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        done = subprocess.run(
            command,
            cwd=home,
            env={**os.environ, "HOME": str(home), "PATH": path},
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    return run


@pytest.fixture
def run_python(home: Path) -> Callable[[str], str]:
    """`run_python(code)` runs a script in the home directory, and returns what it prints."""

    def run_python(code: str) -> str:
        script = home / ".script.py"
        script.write_text(code)
        return run_script(script, home=home)

    return run_python
