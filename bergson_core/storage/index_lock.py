"""The locks of the directory of an index: one keeps out all writers but one, the other all takedowns but one.

The kernel lets a lock go when the process that holds it ends, however it ends. A process that is stopped (SIGSTOP) or
hangs keeps it. The file says who holds the lock, for messages, and the time of its last change says since when.
"""

import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

from bergson_core.errors import IndexBusy
from bergson_core.storage.layout import LOCK_FILE, TAKEDOWN_LOCK_FILE
from bergson_core.utils.background import stop_if_abandoned
from bergson_core.utils.file_locks import is_at, try_lock

_MAX_HOLDER_BYTES: Final = 300
TAKEDOWN_PATIENCE_S: Final = 2.0
"""Seconds for which a process may hold the lock of takedowns before it counts as one that hangs. It looks the document
up, and writes two small files."""
_LEAST_WAIT_S: Final = 0.2
"""A process that has just got the lock of takedowns needs a moment to say so, and one that looks who has it, too."""
_PAUSE_S: Final = 0.01


@contextmanager
def lock_index(root: Path) -> Iterator[None]:
    """Holds the lock of the index in the directory `root`, which exists, while the context is open.

    Raises:
        IndexBusy: Another writer holds the lock, or has just removed the directory.
    """
    with _lock(root, LOCK_FILE):
        yield


@contextmanager
def lock_takedowns(root: Path, patience_s: float | None = None) -> Iterator[None]:
    """Holds the lock of the takedowns of an index while the context is open, and waits for it.

    Takedowns that come at the same time wait for each other, however many they are. Only a process that holds the lock
    for longer than `patience_s` is given up, by all that wait for it and by those that come later.

    Args:
        root: Directory of the index, which exists.
        patience_s: How long a process may hold the lock; `TAKEDOWN_PATIENCE_S` by default.

    Raises:
        IndexBusy: A process has held the lock for longer, or has just removed the directory.
        Cancelled: Nobody waits for the work of this thread any more.
    """
    with _lock(root, TAKEDOWN_LOCK_FILE, TAKEDOWN_PATIENCE_S if patience_s is None else patience_s):
        yield


def find_writer(root: Path) -> str | None:
    """Returns who holds the lock of the index in `root`, for messages; None if nobody does.

    A process that hangs in a takedown counts as a writer, because no new generation could be published.
    """
    return _find_holder(root / LOCK_FILE) or find_hung_takedown(root)


def find_hung_takedown(root: Path) -> str | None:
    """Returns who holds the lock of takedowns for longer than a takedown takes; None if nobody does."""
    return _find_holder(root / TAKEDOWN_LOCK_FILE, TAKEDOWN_PATIENCE_S)


@contextmanager
def _lock(root: Path, name: str, patience_s: float = 0) -> Iterator[None]:
    path = root / name
    handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        least_end = time.monotonic() + min(patience_s, _LEAST_WAIT_S)
        while not try_lock(handle):
            if time.monotonic() >= least_end and _held_s(handle) >= patience_s:
                raise IndexBusy(
                    f"{root} is being written by {_read_holder(handle)}; wait for it or stop it, and look whether it "
                    "is a process that is stopped or hangs"
                )
            stop_if_abandoned()
            time.sleep(_PAUSE_S)
        if not is_at(handle, path):
            raise IndexBusy(f"{root} is being removed by another process; try again later")
        with suppress(OSError):  # the lock does not depend on what is in the file: the disk may be full
            os.utime(handle)
            os.ftruncate(handle, 0)
            os.pwrite(handle, f"process {os.getpid()} on {socket.gethostname()}".encode(), 0)
        yield
    finally:
        os.close(handle)


def _find_holder(path: Path, min_held_s: float = 0) -> str | None:
    try:
        handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except (
        OSError
    ):  # there is no such directory, or whoever wants to write there will see what is wrong with it
        return None
    try:
        # The time is looked at first, so that the lock is touched only where it may be held for long.
        is_long_held = _held_s(handle) >= min_held_s and not try_lock(handle, shared=True)
        return _read_holder(handle) if is_long_held else None
    finally:
        os.close(handle)


def _held_s(handle: int) -> float:
    """Returns for how many seconds the lock is held, if it is. A clock that was set back does not make it endless."""
    return abs(time.time() - os.fstat(handle).st_mtime)


def _read_holder(handle: int) -> str:
    holder = os.pread(handle, _MAX_HOLDER_BYTES, 0).decode(errors="replace")
    return f"another process ({holder})" if holder.isprintable() and holder else "another process"
