"""Temporary directories that are removed even if the process that made them is killed: the next one removes them.

Each has a file that its process holds a lock of, so that it is known whether the process still lives.
"""

import atexit
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Final

from bergson_core.utils.file_locks import is_at, try_lock

_PREFIX: Final = "bergson-scratch-"
_LOCK_FILE: Final = ".in-use"


@contextmanager
def scratch_directory() -> Iterator[Path]:
    """Yields a new temporary directory, which is removed when the context is left.

    Directories of processes that were killed are removed as well.
    """
    remove_dead_scratch_directories()
    directory, handle = _create()
    owner = os.getpid()
    try:
        yield directory
    finally:
        os.close(handle)
        if os.getpid() == owner:  # and not a fork of it
            _remove(directory)


def scratch_directory_until_exit() -> Path:
    """Returns a new temporary directory, which is removed when this process ends."""
    stack = ExitStack()
    directory = stack.enter_context(scratch_directory())
    atexit.register(stack.close)
    return directory


def remove_dead_scratch_directories() -> None:
    """Removes the temporary directories of this user's processes that were killed."""
    for directory in Path(tempfile.gettempdir()).glob(f"{_PREFIX}*"):
        with suppress(OSError):  # another process removes it at the same time
            stat = directory.lstat()
            if stat.st_uid == os.getuid() and directory.is_dir() and not directory.is_symlink():
                _remove(directory)


def _create() -> tuple[Path, int]:
    """Returns a new directory and its lock, as an open file."""
    while True:
        directory = Path(tempfile.mkdtemp(prefix=_PREFIX))
        with suppress(FileNotFoundError):  # another process has removed it, since it had no lock yet
            handle = os.open(directory / _LOCK_FILE, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            if try_lock(handle) and is_at(handle, directory / _LOCK_FILE):
                return directory, handle
            os.close(handle)


def _remove(directory: Path) -> None:
    """Removes a directory unless its process lives. The lock goes last, so that a call which is killed is repeated."""
    lock = directory / _LOCK_FILE
    if lock.exists():
        handle = os.open(lock, os.O_RDWR | os.O_CLOEXEC)
        try:
            if not try_lock(handle):
                return
            for path in directory.iterdir():
                if path.is_dir() and not path.is_symlink():
                    shutil.rmtree(path, ignore_errors=True)
                elif path != lock:
                    path.unlink(missing_ok=True)
            lock.unlink(missing_ok=True)
        finally:
            os.close(handle)
    with suppress(OSError):  # it is not empty
        directory.rmdir()
