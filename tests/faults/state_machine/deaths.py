"""Runs work in a process that is killed at one of its changes of files, which a test chooses by its number.

Changes are counted by an audit hook of Python, before each of them happens. Files that were just opened for writing may
be cut, since a process that is killed has written any part of what it had to write.
"""

import os
import signal
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

from tests.processes import forkserver_context

_CHANGES: Final = ("os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.link", "os.symlink", "os.truncate")

WRITTEN_SHARES: Final = (0.0, 0.3, 0.9, 1.0)


@dataclass(frozen=True)
class Death:
    """A `kill -9` in the middle of work.

    Attributes:
        change: The process dies before it makes this change of files; 1 is the first.
        written: Share of the file that the process was writing which is on disk, from 0 to 1.
    """

    change: int
    written: float = 1.0


def run_and_die(death: Death, work: Callable[..., object], *arguments: Any) -> bool:
    """Calls `work` in another process, which dies meanwhile.

    Returns:
        Whether the process died; False if the work was done before.
    """
    process = forkserver_context().Process(target=_run, args=(death, work, arguments))
    process.start()
    process.join()
    assert process.exitcode in (0, -signal.SIGKILL), f"the process has ended with {process.exitcode}"
    return process.exitcode != 0


def _run(death: Death, work: Callable[..., object], arguments: tuple[Any, ...]) -> None:
    remaining, writing = death.change, ("", 0)

    def reach(path: str = "", size: int = 0) -> None:
        """Notes that the process is about to make a change; `path` is the file that it opens for writing."""
        nonlocal remaining, writing
        remaining -= 1
        if remaining == 0:
            _cut(*writing, death.written)
            os.kill(os.getpid(), signal.SIGKILL)
        writing = path, size

    def audit(event: str, details: tuple[Any, ...]) -> None:
        if event in _CHANGES:
            reach()
        elif event == "open" and not isinstance(details[0], int) and details[2] & (os.O_WRONLY | os.O_RDWR):
            path, is_appended = os.fsdecode(details[0]), details[2] & os.O_APPEND
            reach(path, os.path.getsize(path) if is_appended and os.path.exists(path) else 0)

    os.fsync = lambda file: reach()  # the end of a file that is written without being renamed
    sys.addaudithook(audit)
    work(*arguments)


def _cut(path: str, start: int, written: float) -> None:
    """Cuts what a file has after its first `start` bytes to the share `written`."""
    if path and os.path.isfile(path):
        end = os.path.getsize(path)
        os.truncate(path, start + round(written * max(0, end - start)))
