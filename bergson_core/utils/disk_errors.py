"""Recognises what is wrong with a disk in the errors of the libraries that write to it.

Python, PyArrow, safetensors and faiss each raise an error of another type, some with the system's error number and some
with its text only.
"""

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from bergson_core.errors import BergsonError, DiskFailed, DiskFull, ReadOnly

_KINDS: Final[dict[int, tuple[type[BergsonError], str, str]]] = {
    errno.ENOSPC: (DiskFull, "no space is left", "make room"),
    errno.EDQUOT: (DiskFull, "the quota is used up", "make room or raise the quota"),
    errno.EFBIG: (DiskFull, "a file would be larger than is allowed", "make room or raise the limit"),
    errno.EROFS: (ReadOnly, "the file system is read-only", "mount it for writing"),
    errno.EACCES: (ReadOnly, "permission is denied", "permit writing"),
    errno.EPERM: (ReadOnly, "the operation is not permitted", "permit writing"),
    errno.EIO: (DiskFailed, "the disk reports an error", "look at the system's log"),
}
"""The error that is raised for an error number, what is wrong, and what to do."""
DISK_ERRORS: Final = (DiskFull, ReadOnly, DiskFailed)
"""The errors that `translate_disk_errors` raises."""


def find_disk_error(error: BaseException, path: str | Path | None = None) -> BergsonError | None:
    """Returns the error of ours for an error of a library; None if it says nothing about a disk.

    Args:
        error: What was raised.
        path: The file or directory that was written to, for the message. By default it is the one that `error` names,
            and a text in an error of another type than `OSError` does not count.

    Returns:
        `DiskFull`, `ReadOnly` or `DiskFailed`.
    """
    if isinstance(error, BergsonError):
        return None
    number = getattr(error, "errno", None)
    if number not in _KINDS:
        text = "" if path is None else str(error)
        number = next((code for code in _KINDS if os.strerror(code) in text), None)
    if number is None:
        return None
    kind, reason, advice = _KINDS[number]
    place = path if path is not None else getattr(error, "filename", None) or "a file"
    return kind(
        f"{place} cannot be written, {reason}: {advice} and try again, finished work is kept ({error})"
    )


def raise_if_disk_full(error: Exception) -> None:
    """Raises `DiskFull` or `ReadOnly` for an error that nothing but a write can meet.

    It is for where files are read, and libraries write as well: to their cache, or to a log.
    """
    named = find_disk_error(error)
    if isinstance(named, DiskFull) or getattr(error, "errno", None) == errno.EROFS:
        assert named is not None
        raise named from error


@contextmanager
def translate_disk_errors(path: Path) -> Iterator[None]:
    """Turns an error inside the context that says that a disk cannot be written to into one of ours.

    An error that names a file elsewhere is not of this disk, and stays as it is.

    Args:
        path: The directory that is written to, which the message names.

    Raises:
        DiskFull: No space is left, the quota is used up, or a file would be larger than is allowed.
        ReadOnly: The file system is read-only, or its permissions forbid writing.
        DiskFailed: The disk reports an error.
    """
    try:
        yield
    except Exception as error:
        if _is_elsewhere(error, path) or (translated := find_disk_error(error, path)) is None:
            raise
        raise translated from error


def _is_elsewhere(error: Exception, path: Path) -> bool:
    name = getattr(error, "filename", None)
    if not isinstance(name, str | bytes | os.PathLike):
        return False
    named, here = Path(os.path.abspath(os.fsdecode(name))), Path(os.path.abspath(path))
    # What cannot be created is named by itself, or by a directory above it.
    return not (named.is_relative_to(here) or here.is_relative_to(named))
