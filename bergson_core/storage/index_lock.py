"""The lock that keeps all writers but one out of the directory of an index.

The kernel lets the lock go when the process that holds it ends, however it ends. A process that is stopped (SIGSTOP)
or hangs keeps it. The file says who holds it, for messages.
"""

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

from bergson_core.errors import IndexBusy
from bergson_core.storage.layout import LOCK_FILE
from bergson_core.utils.file_locks import is_at, try_lock

_MAX_HOLDER_BYTES: Final = 300


@contextmanager
def lock_index(root: Path) -> Iterator[None]:
    """Holds the lock of the index in the directory `root`, which exists, while the context is open.

    Raises:
        IndexBusy: Another writer holds the lock, or has just removed the directory.
    """
    path = root / LOCK_FILE
    handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        if not try_lock(handle):
            raise IndexBusy(f"{root} is being written by {_read_holder(handle)}; wait for it or stop it")
        if not is_at(handle, path):
            raise IndexBusy(f"{root} is being removed by another process; try again")
        with suppress(OSError):  # the lock does not depend on what is in the file: the disk may be full
            os.ftruncate(handle, 0)
            os.pwrite(handle, f"process {os.getpid()} on {socket.gethostname()}".encode(), 0)
        yield
    finally:
        os.close(handle)


def find_writer(root: Path) -> str | None:
    """Returns who holds the lock of the index in `root`, for messages; None if nobody does."""
    try:
        handle = os.open(root / LOCK_FILE, os.O_RDONLY | os.O_CLOEXEC)
    except (
        OSError
    ):  # there is no such directory, or whoever wants to write there will see what is wrong with it
        return None
    try:
        return None if try_lock(handle, shared=True) else _read_holder(handle)
    finally:
        os.close(handle)


def _read_holder(handle: int) -> str:
    holder = os.pread(handle, _MAX_HOLDER_BYTES, 0).decode(errors="replace")
    return f"another process ({holder})" if holder.isprintable() and holder else "another process"
