"""TODO"""

import ctypes
import mmap
from pathlib import Path
from typing import Final

import numpy as np
import pyarrow as pa

_libc: Final = ctypes.CDLL(None)


def map_buffer(path: Path) -> pa.Buffer:
    """A file's content, mapped, without a file descriptor: an index may have thousands of files."""
    with pa.memory_map(str(path)) as source:
        return source.read_buffer()


def map_array(path: Path, dtype: np.dtype | type, shape: tuple[int, ...]) -> np.ndarray:
    """A file as a read-only array of `shape`, mapped."""
    if 0 in shape:
        return np.zeros(shape, dtype)
    return np.frombuffer(map_buffer(path), dtype).reshape(shape)


def release_pages(array: np.ndarray) -> None:
    """Gives the pages of a part of what `mapped` returned back: in memory, they count as this process's.

    Of nothing else: other memory would be lost.
    """
    if array.nbytes:
        start = array.ctypes.data // mmap.PAGESIZE * mmap.PAGESIZE
        length = array.ctypes.data + array.nbytes - start
        _libc.madvise(ctypes.c_void_p(start), ctypes.c_size_t(length), mmap.MADV_DONTNEED)
