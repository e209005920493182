"""Files that are replaced in one step: a reader sees the old content or the new, never a part of it.

Where the disk does not take them, the error has a name: `DiskFull`, `ReadOnly` or `DiskFailed`.
"""

import hashlib
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from uuid import uuid4

from bergson_core.utils.disk_errors import translate_disk_errors


def file_sha256(path: Path) -> str:
    """Returns the sha256 of a file's content as hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_durably(path: Path, content: bytes) -> None:
    """Replaces a file in one step. The new content survives a power cut once this returns."""
    with atomic_path(path, durable=True) as temporary:
        temporary.write_bytes(content)


def write_atomically(path: Path, content: bytes) -> None:
    """Replaces a file in one step, without waiting for the disk."""
    with atomic_path(path) as temporary:
        temporary.write_bytes(content)


@contextmanager
def atomic_path(path: Path, *, durable: bool = False, exclusive: bool = False) -> Iterator[Path]:
    """Yields a path beside `path` where the caller creates a file, and renames that file to `path` at the end.

    If the block raises, the file is removed and `path` stays as it was.

    Args:
        path: The file to create or replace. Its directory exists.
        durable: Flush the content and the directory to disk before this returns.
        exclusive: The caller holds a lock on `path`. The temporary name is then always the same, so that the next
            process overwrites what a killed one left behind.
    """
    temporary = path.with_name(f".{path.name}.tmp" if exclusive else f".{path.name}.{uuid4().hex}.tmp")
    with translate_disk_errors(path.parent):
        try:
            yield temporary
            if durable:
                fsync_path(temporary)
            temporary.replace(path)
            if durable:
                fsync_path(path.parent)
        finally:
            with suppress(OSError):  # what has gone wrong is known already
                temporary.unlink(missing_ok=True)


@contextmanager
def atomic_directory(path: Path) -> Iterator[Path]:
    """Yields a new directory beside `path`, and at the end flushes it to disk and renames it to `path`.

    An existing directory `path` is removed. If the block raises, `path` stays as it was.
    """
    new, old = (path.with_name(f".{path.name}.{uuid4().hex}.{suffix}") for suffix in ("tmp", "old"))
    with translate_disk_errors(path.parent):
        try:
            new.mkdir(parents=True)
            yield new
            for file in new.iterdir():
                fsync_path(file)
            if path.exists():
                path.rename(old)
            new.rename(path)
        finally:
            shutil.rmtree(new, ignore_errors=True)
            shutil.rmtree(old, ignore_errors=True)


def fsync_path(path: Path) -> None:
    """Flushes a file or a directory to disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
