"""TODO"""

import hashlib
import os
from pathlib import Path
from uuid import uuid4


def file_sha256(path: Path) -> str:
    """sha256 of a file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_durably(path: Path, content: bytes) -> None:
    """Replaces a file as one step: a reader sees the old or the new content, also after a power cut."""
    write_atomically(path, content, durably=True)
    fsync_path(path.parent)


def write_atomically(path: Path, content: bytes, durably: bool = False) -> None:
    temporary = path.with_name(f".{path.name}.{uuid4().hex}")
    try:
        with temporary.open("xb") as file:
            file.write(content)
            file.flush()
            if durably:
                os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def fsync_path(path: Path) -> None:
    """Flushes a file or a directory to disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
