"""Reads JSON files: an object on each line, or one array of objects, which need not fit into memory."""

import codecs
import io
import json
from collections.abc import Iterator, Sequence
from typing import Any, BinaryIO, Final, cast

from pydantic_core import from_json

from bergson_core.data.files.paths import DataFile
from bergson_core.data.files.text_lines import (
    BLOCK_BYTES,
    BYTE_ORDER_MARK,
    MAX_LINE_BYTES,
    decode,
    iter_lines,
    not_utf8,
    open_stream,
    unreadable,
)
from bergson_core.data.row_chunks import Row
from bergson_core.schemas.inline_values import MAX_INTEGER_DIGITS, huge_integer

_NO_OBJECT: Final = "expected an object with the columns of a row"
_EXPECTED: Final = "expected a JSON object on each line, or one array of objects"


def iter_json_rows(file: DataFile, names: Sequence[str] = ()) -> Iterator[tuple[Row, int]]:
    """Yields the objects of a file, each with its size in the file.

    An integer of more digits than Python reads becomes an `UnreadableValue`, and a number that is too large for a float
    becomes infinity. The caller refuses both in the columns that count.

    Args:
        file: The file.
        names: Keys that no object may have twice.

    Raises:
        DatasetNotFound: The file is not JSON in UTF-8, has something other than objects, or an object with one of
            `names` twice. The message names the line.
    """
    with open_stream(file) as stream:
        head = cast(io.BufferedReader, stream).peek(1).removeprefix(BYTE_ORDER_MARK).lstrip()
        iter_rows = _iter_array if head.startswith(b"[") else _iter_object_lines
        yield from iter_rows(file, stream, [json.dumps(name, ensure_ascii=False) for name in names])


def _iter_object_lines(file: DataFile, stream: BinaryIO, keys: Sequence[str]) -> Iterator[tuple[Row, int]]:
    encoded_keys = [key.encode() for key in keys]
    for number, line in enumerate(iter_lines(file, stream), start=1):
        if line and not line.isspace():
            try:
                row = from_json(line, cache_strings="keys")
            except ValueError:
                row = _parse_leniently(file, number, line)
            if not isinstance(row, dict):
                raise unreadable(file, f"line {number}: {_NO_OBJECT}")
            if any(line.count(key) > 1 for key in encoded_keys):
                _require_single_keys(file, number, line.decode(), keys)
            yield row, len(line)


def _require_single_keys(file: DataFile, number: int, text: str, keys: Sequence[str]) -> None:
    """Raises `DatasetNotFound` if the text of an object has one of some keys twice, of which Python keeps the last."""
    names = [name for name, _ in json.loads(text, object_pairs_hook=list, parse_int=_parse_integer)]
    for key in keys:
        if names.count(json.loads(key)) > 1:
            raise unreadable(
                file, f"line {number}: the object has the key {key} twice; expected each key once"
            )


def _parse_integer(digits: str) -> Any:
    count = len(digits.lstrip("-"))
    return int(digits) if count <= MAX_INTEGER_DIGITS else huge_integer(count)


def _parse_leniently(file: DataFile, number: int, line: bytes) -> Any:
    """Parses a line that the fast parser refuses, as for half a surrogate pair in a column that does not matter."""
    text = decode(file, line, number).rstrip()
    try:
        return json.loads(text, parse_int=_parse_integer)
    except json.JSONDecodeError as error:
        reason = f"line {number}, column {error.colno}: {error.msg}; {_EXPECTED}"
        if "\r" in text:
            reason = f"line {number} holds line ends that are CR alone; expected LF or CR LF"
        elif error.pos == len(text):
            reason = f"line {number}: the object does not end on its line; {_EXPECTED}"
        raise unreadable(file, reason) from None
    except RecursionError as error:
        raise unreadable(file, f"line {number}: {error}") from None


def _iter_array(file: DataFile, stream: BinaryIO, keys: Sequence[str]) -> Iterator[tuple[Row, int]]:
    text = _ArrayText(file, stream, keys)
    text.take_one_of("[")
    if text.peek() == "]":
        text.take_one_of("]")
    else:
        separator = ","
        while separator == ",":
            yield text.take_object()
            separator = text.take_one_of(",]")
    if text.peek():
        raise text.error("expected nothing after the array")


class _ArrayText:
    """The text of a file, of which as much is in memory as the next value needs."""

    def __init__(self, file: DataFile, stream: BinaryIO, keys: Sequence[str]) -> None:
        self._file, self._stream, self._keys = file, stream, keys
        self._decoder, self._json = codecs.getincrementaldecoder("utf-8-sig")(), json.JSONDecoder()
        self._text, self._first_line, self._bytes_read = "", 1, 0
        self.position = 0

    @property
    def line(self) -> int:
        """Number of the line that is read next."""
        return self._first_line + self._text.count("\n", 0, self.position)

    def error(self, reason: str) -> Exception:
        """Returns the error to raise for what comes next."""
        return unreadable(self._file, f"line {self.line}: {reason}")

    def peek(self) -> str:
        """Returns the next character that is not white space, or "" at the end of the file."""
        while True:
            while self.position < len(self._text):
                if not (character := self._text[self.position]).isspace():
                    return character
                self.position += 1
            if not self._read_more():
                return ""

    def take_one_of(self, expected: str) -> str:
        """Reads the next character. Raises `DatasetNotFound` if it is none of those that are expected."""
        character = self.peek()
        if not character or character not in expected:
            got = repr(character) if character else "the end of the file"
            raise self.error(f"expected {' or '.join(expected)} in an array of objects, got {got}")
        self.position += 1
        return character

    def take_object(self) -> tuple[Row, int]:
        """Reads the next object, however many blocks it takes, and returns it with its number of characters."""
        if self.peek() != "{":
            raise self.error(_NO_OBJECT)
        while True:
            try:
                row, end = self._json.raw_decode(self._text, self.position)
                break
            except json.JSONDecodeError as error:
                line = self._first_line + self._text.count("\n", 0, error.pos)
                context = self._text[max(self.position, error.pos - 20) : error.pos + 20]
                if not self._read_more():
                    raise unreadable(self._file, f"line {line}: {error.msg} near {context!r}") from None
            except RecursionError as error:
                raise self.error(str(error)) from None
            except ValueError:  # an integer of too many digits
                self._json = json.JSONDecoder(parse_int=_parse_integer)
        if any(self._text.count(key, self.position, end) > 1 for key in self._keys):
            _require_single_keys(self._file, self.line, self._text[self.position : end], self._keys)
        size, self.position = end - self.position, end
        return row, size

    def _read_more(self) -> bool:
        """Reads at least as much as is left, so that a long value is not parsed too often. Returns False at the end."""
        rest, self._first_line = self._text[self.position :], self.line
        self._text, self.position = rest, 0
        block = self._stream.read(max(BLOCK_BYTES, len(rest)))
        try:
            self._text += self._decoder.decode(block, final=not block)
        except UnicodeDecodeError as error:
            in_file = self._bytes_read - (len(error.object) - len(block)) + error.start + 1
            line = self._first_line + rest.count("\n") + error.object.count(b"\n", 0, error.start)
            byte = error.object[error.start]
            raise not_utf8(self._file, f"byte {in_file} of the file, in line {line},", byte) from None
        self._bytes_read += len(block)
        if len(rest) > MAX_LINE_BYTES:
            raise self.error(f"an object has more than {MAX_LINE_BYTES:,} characters")
        return bool(block)
