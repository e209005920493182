"""Recognises a full disk in the errors of the libraries that write shards."""

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from safetensors import SafetensorError

from bergson_core.errors import DiskFull

_REASONS: Final = {
    errno.ENOSPC: "no space is left",
    errno.EDQUOT: "the quota is used up",
    errno.EFBIG: "a file would be larger than is allowed",
}


@contextmanager
def translate_disk_errors(root: Path) -> Iterator[None]:
    """Turns an error inside the context that says that the disk is full into `DiskFull`.

    Python, PyArrow, safetensors and faiss each raise an error of another type for it, some with the system's error
    number and some with its text only.

    Args:
        root: The directory that is written to, which the message names.

    Raises:
        DiskFull: No space is left, the quota is used up, or a file would be larger than is allowed.
    """
    try:
        yield
    except (OSError, RuntimeError, SafetensorError) as error:
        number = getattr(error, "errno", None)
        reason = next(
            (text for code, text in _REASONS.items() if code == number or os.strerror(code) in str(error)),
            None,
        )
        if reason is None:
            raise
        raise DiskFull(
            f"{root} cannot be written, {reason}: make room and start again, finished work is kept ({error})"
        ) from error
