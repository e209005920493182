"""Memory-mapped files: read without copying them, and without keeping a file descriptor open for each."""

import ctypes
import mmap
from pathlib import Path
from typing import Final

import numpy as np
import pyarrow as pa

_libc: Final = ctypes.CDLL(None)


def map_buffer(path: Path) -> pa.Buffer:
    """Maps a file into memory and closes its file descriptor, because an index may have thousands of files."""
    with pa.memory_map(str(path)) as source:
        return source.read_buffer()


def map_array(path: Path, dtype: np.dtype | type, shape: tuple[int, ...]) -> np.ndarray:
    """Maps a file into memory as a read-only array of the given type and shape."""
    if 0 in shape:  # An empty file cannot be mapped.
        return np.zeros(shape, dtype)
    return np.frombuffer(map_buffer(path), dtype).reshape(shape)


def release_pages(array: np.ndarray) -> None:
    """Releases the pages that a mapped array occupies in memory, which count as memory of this process.

    Args:
        array: A result of `map_array`, or a part of one. Any other memory would lose its content.
    """
    if array.nbytes:
        start = array.ctypes.data // mmap.PAGESIZE * mmap.PAGESIZE
        length = array.ctypes.data + array.nbytes - start
        _libc.madvise(ctypes.c_void_p(start), ctypes.c_size_t(length), mmap.MADV_DONTNEED)
