"""No process of ours imports a file of the working directory, whatever its name is."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from bergson_core.utils.sandbox import run_sandboxed
from service.client import Client
from tests.e2e.helpers import BERGSON, build_request, find_processes
from tests.worker.helpers import wait_until
from tests.worker.servers import free_port

pytestmark = pytest.mark.e2e

STRAY_MODULES = (
    "worker",
    "json",
    "socket",
    "torch",
    "redis",
    "uvicorn",
    "httpx",
    "ctypes",
    "random",
    "pickle",
)
STRAY_PACKAGES = ("service", "bergson_core", "multiprocessing", "transformers", "datasets", "tests")


@pytest.fixture
def stray_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory: full of files that have names of modules and record that they were imported."""
    directory = tmp_path / "mine"
    code = (
        f"open({str(tmp_path / 'imported')!r}, 'a').write(__name__ + '\\n')\nraise SystemExit('imported')\n"
    )
    for name in STRAY_PACKAGES:
        (directory / name).mkdir(parents=True)
        for file in ("__init__.py", "__main__.py"):
            (directory / name / file).write_text(code)
    for name in STRAY_MODULES:
        (directory / f"{name}.py").write_text(code)
    monkeypatch.chdir(directory)
    return directory


def imported_files(tmp_path: Path) -> list[str]:
    """Returns the names of the stray modules that were imported."""
    record = tmp_path / "imported"
    return record.read_text().split() if record.exists() else []


def test_the_stray_files_run_under_plain_python_m(stray_directory, tmp_path):
    subprocess.run([sys.executable, "-m", "worker"], env={**os.environ, "PYTHONSAFEPATH": ""}, check=False)
    assert imported_files(tmp_path)


def test_up_starts_builds_and_answers_in_a_directory_of_stray_modules_and_leaves_no_process_behind(
    stray_directory, sources, tmp_path
):
    port = free_port()
    command = [BERGSON, "up", "--port", str(port), "--data_dir", str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        try:
            assert f":{port}/docs" in process.stdout.readline()
            with Client(f"http://127.0.0.1:{port}") as client:
                client.build("facts", **build_request(sources), wait=True)
                assert client.attribute("facts", "Person 3 lives in", " city 1.").results
                # An estimate runs a process of its own.
                assert client.estimate(**build_request(sources)).documents == 40
        finally:
            process.terminate()
            process.wait(40)
    wait_until(lambda: not find_processes(tmp_path))
    assert imported_files(tmp_path) == []


def test_the_sandbox_imports_nothing_of_the_working_directory(stray_directory, tmp_path):
    program = "import json, sys; print(json.dumps(sum(json.load(sys.stdin))))"
    assert run_sandboxed(program, [1, 2], 30) == 3
    assert imported_files(tmp_path) == []
