"""Hostile JSON for files and messages: any part of what is right is replaced, removed or added.

The places come from the JSON schema of the model (`hostile_bodies.iter_paths`), so that a field that is added is
attacked as well.
"""

import ctypes
import json
import os
import re
import struct
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, TypeVar

from hypothesis import strategies as st

from bergson_core.errors import BergsonError
from tests.faults.support.hostile_bodies import iter_paths, put_into

T = TypeVar("T")

MAX_CPU_S: Final = 1.0
MAX_GROWTH_BYTES: Final = 200 * 2**20
DEEP: Final = "[" * 50_000 + "]" * 50_000
HOSTILE_PATHS: Final = (
    "../outside/shards/00000",
    "../../outside",
    "shards/../../outside/shards/00000/rows.arrow",
    "/etc/passwd",
    "/dev/zero",
    "/proc/self/environ",
    "//etc//passwd",
    "~/x",
    "~nobody-of-that-name/x",
    "a\0b",
    "x" * 300,
    "a/" * 3000,
    "*",
    "**/[a",
    "\ud800",
    "\udcff",
    "file:///etc/passwd",
    "hf://datasets/a/b",
    "./link/x",
    "fifo",
    "",
    ".",
    "..",
    "/",
    " ",
    "\n",
)
"""Texts that a careless program takes for the path of a file, or fails on."""
_NUMBERS: Final = (
    "0",
    "1",
    "2",
    "3",
    "-1",
    "41",
    "1.5",
    "1e308",
    "1e400",
    "-0.0",
    "NaN",
    "-Infinity",
    "true",
    "false",
)
_LARGE: Final = (str(2**31), str(2**63 - 1), str(2**63), str(-(2**63) - 1), "9" * 400, "9" * 5000)
_OTHERS: Final = ("null", "{}", "[]", "[[]]", '{"":{}}', "[null]", '["a"]', '{"a":1}', '"text"', '"1"', DEEP)
_PLAIN: Final = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda part: st.lists(part, max_size=3) | st.dictionaries(st.text(max_size=5), part, max_size=3),
    max_leaves=8,
)
hostile_values: Final = st.sampled_from(
    (*_NUMBERS, *_LARGE, *_OTHERS, *(json.dumps(path) for path in HOSTILE_PATHS))
) | _PLAIN.map(json.dumps)
"""Values as JSON, or what Python's parser takes for it."""

Place = tuple[str | int, ...]
Change = tuple[Place, str | None]
"""A place, and the JSON that is put there; None removes what is there."""


def hostile_changes(schema: dict[str, Any], *more_places: Place) -> st.SearchStrategy[Change]:
    """Returns a strategy of changes to an object that meets a JSON schema.

    Args:
        schema: The schema, with its definitions.
        more_places: Places that the schema does not know, such as a field to add.
    """
    definitions = schema.get("$defs", {})
    paths = [*dict.fromkeys(iter_paths(schema, definitions)), ("unknown",), *more_places]
    return st.tuples(st.sampled_from(paths), st.none() | hostile_values)


def changes_of(example: Any) -> st.SearchStrategy[Change]:
    """Returns a strategy of changes to a JSON value for which there is no schema."""
    return st.tuples(st.sampled_from([*_iter_places(example), ("unknown",)]), st.none() | hostile_values)


def _iter_places(value: Any) -> Iterator[Place]:
    names: Sequence[str | int] = [*value] if isinstance(value, dict) else []
    if isinstance(value, list) and value:
        names = [0]
    for name in names:
        yield (name,)
        yield from ((name, *place) for place in _iter_places(value[name]))


def apply_change(example: Any, change: Change) -> str:
    """Returns `example` with a change, as JSON of an object that ends on a line of its own."""
    place, filling = change
    text = json.dumps(_without(example, place)) if filling is None else put_into(example, place, filling)
    return text[:-1] + "\n}" if text.endswith("}") else text


def _without(value: Any, place: Place) -> Any:
    if not place:
        return {}
    first, rest = place[0], place[1:]
    if isinstance(value, list) and first == 0 and value:
        return [*([_without(value[0], rest)] if rest else []), *value[1:]]
    if isinstance(value, dict) and first in value:
        others = {name: part for name, part in value.items() if name != first}
        return others | {first: _without(value[first], rest)} if rest else others
    return value


def damaged_texts(text: str) -> st.SearchStrategy[bytes]:
    """Returns a strategy of contents that are no JSON, or only a part of `text`, or not even text."""
    content = text.encode()
    cuts = st.integers(0, len(content) - 1).map(lambda end: content[:end])
    flips = st.tuples(st.integers(0, len(content) - 1), st.integers(1, 255)).map(
        lambda flip: content[: flip[0]] + bytes([content[flip[0]] ^ flip[1]]) + content[flip[0] + 1 :]
    )
    others = [
        b"",
        b"{",
        b"null",
        b"\xff\xfe",
        b"\0",
        content + b"}",
        DEEP.encode(),
        b'{"a":' * 50_000,
        b"\x80\x04.",
    ]
    return cuts | flips | st.binary(max_size=30) | st.sampled_from(others)


def outcome(call: Callable[[], T]) -> T | BergsonError:
    """Returns what a call returns, or the error of ours that it raises."""
    try:
        return call()
    except BergsonError as error:
        return error


@contextmanager
def bounded_cost(what: object) -> Iterator[None]:
    """Checks that a block takes no more than a second of the processor and 200 MiB of memory."""
    Path("/proc/self/clear_refs").write_text("5")  # the peak is that from now on
    memory, cpu = _peak_bytes(), time.process_time()
    yield
    cpu, memory = time.process_time() - cpu, _peak_bytes() - memory
    assert cpu < MAX_CPU_S, f"{cpu:.2f} s for {str(what)[:200]}"
    assert memory < MAX_GROWTH_BYTES, f"{memory / 2**20:.0f} MiB for {str(what)[:200]}"


def _peak_bytes() -> int:
    return 1024 * int(re.findall(r"VmHWM:\s*(\d+)", Path("/proc/self/status").read_text())[0])


class OpenedFiles:
    """Notices every file that this process or another one opens below some directories, by whatever library.

    Args:
        directories: The directories, which exist. Those below them are watched as well.
    """

    def __init__(self, *directories: Path):
        self._libc = ctypes.CDLL(None, use_errno=True)
        self._handle = self._libc.inotify_init1(os.O_NONBLOCK)
        for directory in directories:
            for path in (directory, *(path for path in directory.rglob("*") if path.is_dir())):
                in_open = 0x20
                assert self._libc.inotify_add_watch(self._handle, os.fsencode(path), in_open) >= 0

    def names(self) -> Sequence[str]:
        """Returns the names of the files that were opened since the last call."""
        names = []
        try:
            content = os.read(self._handle, 2**16)
        except BlockingIOError:
            return names
        while content:
            _, mask, _, length = struct.unpack_from("iIII", content)
            name, content = content[16 : 16 + length].rstrip(b"\0"), content[16 + length :]
            is_directory = mask & 0x40000000
            if name and not is_directory:
                names.append(os.fsdecode(name))
        return names

    def close(self) -> None:
        """Ends the watch."""
        os.close(self._handle)
