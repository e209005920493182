"""Reads text files by lines: UTF-8 only, decompressed on the way, with bounds on what may come out of a file."""

import io
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import BinaryIO, Final, cast

import pyarrow as pa
from datasets.utils.extract import Extractor

from bergson_core.data.files.paths import DataFile
from bergson_core.data.parquet_guard import max_decoded_bytes
from bergson_core.errors import DatasetNotFound

MAX_LINE_BYTES: Final = 2**28
"""Longest line, JSON object or whole text that is read: each is held in memory."""
BLOCK_BYTES: Final = 2**20
"""Bytes that are read from a file at a time."""
BYTE_ORDER_MARK: Final = b"\xef\xbb\xbf"
_OTHER_MARKS: Final = {
    b"\xff\xfe\0\0": "UTF-32",
    b"\0\0\xfe\xff": "UTF-32",
    b"\xff\xfe": "UTF-16",
    b"\xfe\xff": "UTF-16",
}
"""Byte order marks of other encodings, longer ones first."""


class _BoundedStream(io.RawIOBase):
    """A compressed stream that may not give far more than the file has bytes."""

    def __init__(self, stream: pa.NativeFile, file: DataFile) -> None:
        self._stream, self._file = stream, file
        self._limit = self._left = max_decoded_bytes(file.path)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:  # pyright: ignore[reportIncompatibleMethodOverride]
        count = self._stream.readinto(buffer)
        self._left -= count
        if self._left < 0:
            raise unreadable(
                self._file,
                f"it unpacks to more than {self._limit:,} bytes; expected at most 100 times its size",
            )
        return count


def unreadable(file: DataFile, reason: str) -> DatasetNotFound:
    """Returns the error to raise for a file whose content is not of its format."""
    return DatasetNotFound(f"{file.path} cannot be read: {reason}")


@contextmanager
def open_stream(file: DataFile) -> Iterator[BinaryIO]:
    """Opens a text file, and decompresses it on the way if its name ends in .gz or .zst.

    Raises:
        DatasetNotFound: The file is compressed and its name does not say so, its compression is damaged, far more comes
            out of it than it has bytes, or it begins as UTF-16 does.
    """
    if file.codec is None and Extractor.infer_extractor_format(file.path):
        raise DatasetNotFound(
            f"{file.path} is compressed or an archive; expected it unpacked, or compressed under a name that ends in "
            ".gz or .zst"
        )
    try:
        with ExitStack() as stack:
            plain = stack.enter_context(pa.OSFile(str(file.path)))
            raw: io.RawIOBase = cast(io.RawIOBase, plain)  # Arrow's streams have what a reader needs.
            if file.codec is not None and plain.size() > 0:
                raw = _BoundedStream(stack.enter_context(pa.CompressedInputStream(plain, file.codec)), file)
            stream = stack.enter_context(io.BufferedReader(raw, BLOCK_BYTES))
            _require_no_other_mark(file, stream.peek(4))
            yield cast(BinaryIO, stream)
    except OSError as error:
        raise unreadable(file, str(error)) from error


def _require_no_other_mark(file: DataFile, head: bytes) -> None:
    for mark, encoding in _OTHER_MARKS.items():
        if head.startswith(mark):
            raise unreadable(
                file, f"it is {encoding}; expected UTF-8 (`iconv -f {encoding} -t UTF-8` converts it)"
            )


def iter_lines(file: DataFile, stream: BinaryIO) -> Iterator[bytes]:
    """Yields the lines of an open file with their ends, without a byte order mark.

    Raises:
        DatasetNotFound: A line is longer than `MAX_LINE_BYTES`.
    """
    for number, line in enumerate(iter(lambda: stream.readline(MAX_LINE_BYTES + 1), b""), start=1):
        if len(line) > MAX_LINE_BYTES:
            raise unreadable(file, f"line {number} has more than {MAX_LINE_BYTES:,} bytes")
        yield line.removeprefix(BYTE_ORDER_MARK) if number == 1 else line


def iter_text_lines(file: DataFile) -> Iterator[str]:
    """Yields the lines of a file with their ends as text.

    Raises:
        DatasetNotFound: A line is too long or not UTF-8; the message names it. Or the file cannot be decompressed.
    """
    with open_stream(file) as stream:
        for number, line in enumerate(iter_lines(file, stream), start=1):
            yield decode(file, line, number)


def read_text(file: DataFile) -> str:
    """Returns the whole text of a file.

    Raises:
        DatasetNotFound: It is too long or not UTF-8; the message names the line. Or the file cannot be decompressed.
    """
    with open_stream(file) as stream:
        content = stream.read(MAX_LINE_BYTES + 1)
    if len(content) > MAX_LINE_BYTES:
        raise unreadable(file, f"it has more than {MAX_LINE_BYTES:,} bytes")
    return decode(file, content.removeprefix(BYTE_ORDER_MARK), 1)


def decode(file: DataFile, content: bytes, first_line: int) -> str:
    """Returns a part of a file as text.

    Args:
        file: The file, for the message.
        content: A line or several.
        first_line: Number of the first of these lines in the file, from 1.

    Raises:
        DatasetNotFound: It is not UTF-8; the message names the line and the byte in it.
    """
    try:
        return content.decode()
    except UnicodeDecodeError as error:
        line = first_line + content.count(b"\n", 0, error.start)
        byte = error.start - content.rfind(b"\n", 0, error.start)
        raise not_utf8(file, f"byte {byte} of line {line}", content[error.start]) from None


def not_utf8(file: DataFile, place: str, byte: int) -> DatasetNotFound:
    """Returns the error to raise for a byte that is not UTF-8."""
    return unreadable(
        file,
        f"{place} (0x{byte:02x}) is not UTF-8; expected UTF-8 (`iconv -f LATIN1 -t UTF-8` converts Latin-1)",
    )
