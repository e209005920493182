"""Starts the processes of tests that kill a process or limit its resources."""

import importlib
import multiprocessing
import os
import runpy
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.context import ForkServerContext
from pathlib import Path
from typing import IO

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


class ForkedModule:
    """Runs `main()` of a module as `subprocess.Popen` runs `python -Pm MODULE`, in a process that has loaded torch.

    Args:
        command: A command whose last word is the module, "worker" or "service".
        env: The whole environment of the process.
        stdout: File that the process writes to.
        **options: Further arguments of `Popen`, which are ignored.
    """

    def __init__(self, command: list[str], env: dict[str, str], stdout: IO[bytes], **options: object) -> None:
        arguments = (command[-1], env, Path(stdout.name))
        self._process = forkserver_context().Process(target=_run_module, args=arguments)
        self._process.start()
        assert self._process.pid is not None
        self.pid = self._process.pid

    @property
    def returncode(self) -> int | None:
        return self._process.exitcode

    def poll(self) -> int | None:
        return self._process.exitcode

    def wait(self, timeout: float | None = None) -> int:
        self._process.join(timeout)
        if self._process.exitcode is None:
            raise subprocess.TimeoutExpired("a forked process", timeout or 0)
        return self._process.exitcode

    def terminate(self) -> None:
        self._process.terminate()

    def kill(self) -> None:
        self._process.kill()


def _run_module(module: str, environment: dict[str, str], output: Path) -> None:
    _set_up(environment, output, output)
    importlib.import_module(f"{module}.__main__").main()


def run_script(script: Path, *arguments: str, home: Path, timeout_s: float = 120) -> str:
    """Runs a script in its user's home directory as `python SCRIPT ARGUMENTS` would, and returns what it prints.

    Its process starts from one that has loaded torch. What it writes to standard error is in the error if it fails.
    """
    output, errors = home / ".stdout", home / ".stderr"
    output.unlink(missing_ok=True)
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = {**os.environ, "HOME": str(home), "PATH": path}
    process = forkserver_context().Process(
        target=_run_script, args=([str(script), *arguments], environment, output, errors)
    )
    process.start()
    process.join(timeout_s)
    if process.is_alive():
        process.kill()
        process.join()
    assert process.exitcode == 0, errors.read_text()
    return output.read_text()


def _run_script(command: list[str], environment: dict[str, str], output: Path, errors: Path) -> None:
    import datasets  # is there already, since the process starts from one that has loaded the library

    _set_up(environment, output, errors)
    os.chdir(environment["HOME"])
    datasets.config.HF_DATASETS_CACHE = Path.home() / ".cache" / "datasets"  # was read from HOME at import
    sys.argv = command
    runpy.run_path(command[0], run_name="__main__")


def _set_up(environment: dict[str, str], output: Path, errors: Path) -> None:
    """Gives this process an environment, and the files that it writes to."""
    for stream, path in ((sys.stdout, output), (sys.stderr, errors)):
        with path.open("ab") as file:
            os.dup2(file.fileno(), stream.fileno())
    os.environ.clear()
    os.environ.update(environment)
