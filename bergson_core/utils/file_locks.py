"""Locks on open files (`flock`). The kernel lets a lock go when the process that holds it ends, however it ends.

If whoever uses a file holds a lock of it meanwhile, it is known whether a file is in use or was left by a process that
was killed, on every machine that shares the disk.
"""

import fcntl
import os
from pathlib import Path
from typing import IO


def try_lock(file: int | IO[bytes], *, shared: bool = False) -> bool:
    """Locks an open file, until it is closed; returns False if another open file has a lock that rules this one out."""
    try:
        fcntl.flock(file, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def is_at(handle: int, path: Path) -> bool:
    """Returns whether an open file is still the one at `path`: it may have been moved, replaced or removed."""
    try:
        return os.path.samestat(os.fstat(handle), path.stat())
    except FileNotFoundError:
        return False


def remove_if_unused(path: Path) -> bool:
    """Removes a file unless a process holds a lock of it; returns whether the file was removed."""
    try:
        with path.open("rb") as file:
            if not try_lock(file) or not is_at(file.fileno(), path):
                return False
            path.unlink()
    except FileNotFoundError:
        return False
    return True
