"""Starts the processes of tests that kill a process or limit its resources."""

import multiprocessing
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.context import ForkServerContext
from pathlib import Path

_STOPPED_TAKEDOWN = """
import os, signal, sys
from pathlib import Path
from bergson_core.storage.index_lock import lock_takedowns
with lock_takedowns(Path(sys.argv[1])):
    os.kill(os.getpid(), signal.SIGSTOP)
"""


@contextmanager
def stopped_takedown(root: Path, *, stopped_s: float = 0) -> Iterator[int]:
    """Has a process that is stopped hold the lock of the takedowns of an index, and yields its process id.

    Args:
        root: Directory of the index.
        stopped_s: For how many seconds it seems to hold the lock already.
    """
    with subprocess.Popen([sys.executable, "-c", _STOPPED_TAKEDOWN, str(root)]) as process:
        try:
            _, status = os.waitpid(process.pid, os.WUNTRACED)
            assert os.WIFSTOPPED(status)
            lock = root / ".takedowns.lock"
            since = lock.stat().st_mtime - stopped_s
            os.utime(lock, (since, since))
            yield process.pid
        finally:
            process.kill()


def forkserver_context() -> ForkServerContext:
    """Returns a context whose processes start from one that has loaded the library, since torch alone takes seconds."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(
        [
            "bergson_core.indexing.build",
            "bergson_core.indexing.append",
            "worker.__main__",
            "service.__main__",
            "tests.tiny",
        ]
    )
    return context
