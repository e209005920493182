"""Temporary directories are removed at the end of their use, or by the next process if theirs was killed."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from bergson_core.utils.scratch_directories import remove_dead_scratch_directories, scratch_directory

PROGRAM = """
import sys
from contextlib import ExitStack
from bergson_core.utils.scratch_directories import scratch_directory, scratch_directory_until_exit
with ExitStack() as stack:
    directory = stack.enter_context(scratch_directory() if sys.argv[1] == "context" else scratch_directory_until_exit())
    (directory / "deep").mkdir()
    lasting = stack.pop_all()
if sys.argv[1] == "exit":
    lasting.close()
print("ready", flush=True)
sys.stdin.read()
"""


@pytest.fixture(autouse=True)
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    return tmp_path


@pytest.fixture
def start(temporary: Path) -> Callable[[str], subprocess.Popen[str]]:
    """Starts a process that has a temporary directory until its input ends."""

    def start(kind: str) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, "-c", PROGRAM, kind],
            env=os.environ | {"TMPDIR": str(temporary)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert process.stdout is not None and process.stdout.readline() == "ready\n"
        return process

    return start


def test_a_directory_is_removed_with_all_that_is_in_it(temporary: Path):
    with scratch_directory() as directory:
        (directory / "deep").mkdir()
        (directory / "deep" / "file").write_text("x")
        (directory / "link").symlink_to(temporary)
        assert list(temporary.iterdir()) == [directory]
    assert list(temporary.iterdir()) == []


def test_a_directory_that_lasts_until_exit_is_removed_at_exit(
    temporary: Path, start: Callable[[str], subprocess.Popen[str]]
):
    process = start("exit")
    assert len(list(temporary.iterdir())) == 1
    process.communicate()
    assert list(temporary.iterdir()) == []


@pytest.mark.parametrize("kind", ["context", "exit"])
def test_the_directory_of_a_killed_process_is_removed_by_the_next_and_no_other(
    temporary: Path, start: Callable[[str], subprocess.Popen[str]], kind: str
):
    killed, frozen = start(kind), start(kind)
    os.kill(frozen.pid, signal.SIGSTOP)
    killed.kill()
    killed.communicate()
    (temporary / "bergson-results").mkdir()
    (temporary / "bergson-scratch-notes").mkdir()
    (temporary / "bergson-scratch-notes" / "mine.txt").write_text("x")
    with scratch_directory() as directory:
        remaining = {path.name for path in temporary.iterdir()} - {directory.name}
    assert len(remaining) == 3 and {"bergson-results", "bergson-scratch-notes"} < remaining
    frozen.kill()
    frozen.communicate()
    remove_dead_scratch_directories()
    assert {path.name for path in temporary.iterdir()} == {"bergson-results", "bergson-scratch-notes"}
