"""Faults of a disk: calls that fail, files that are damaged."""

import builtins
import io
import os
import random
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

_CALLS = ("open", "mkdir", "rename", "replace", "fsync", "ftruncate", "write", "unlink", "rmdir")


@contextmanager
def failing_call(root: Path, number: int, code: int) -> Iterator[list[str]]:
    """Makes the call with this number that changes something below `root`, and all after it, fail with an error number.

    What libraries in other languages write is not counted. Descriptors count as below `root`.

    Yields:
        The calls that were counted, in order.
    """
    calls: list[str] = []

    def fail_from(
        name: str, original: Callable[..., Any], changes: Callable[..., bool]
    ) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            if changes(*arguments, **options):
                calls.append(name)
                if len(calls) > number:
                    place = arguments[0] if isinstance(arguments[0], str | os.PathLike) else None
                    raise OSError(code, os.strerror(code), *([os.fspath(place)] if place is not None else []))
            return original(*arguments, **options)

        return call

    def is_below(path: Any, *_arguments: Any, **_options: Any) -> bool:
        return isinstance(path, int) or os.path.abspath(os.fspath(path)).startswith(str(root))

    def opens_to_write(path: Any, flags: int = 0, *_arguments: Any, **_options: Any) -> bool:
        return bool(flags & (os.O_WRONLY | os.O_RDWR)) and is_below(path)

    def opens_file_to_write(path: Any, mode: str = "r", *_arguments: Any, **_options: Any) -> bool:
        return bool(set(mode) & set("wxa+")) and is_below(path)

    with pytest.MonkeyPatch.context() as patch:
        for name in _CALLS:
            changes = opens_to_write if name == "open" else is_below
            patch.setattr(os, name, fail_from(name, getattr(os, name), changes))
        for module in (io, builtins):
            patch.setattr(module, "open", fail_from("open file", open, opens_file_to_write))
        yield calls


def kinds_of_files(index: Path) -> dict[str, list[Path]]:
    """Returns the files of an index by kind: their paths with numbers left out. Locks, which hold nothing, are none."""
    kinds: dict[str, list[Path]] = {}
    for path in sorted(index.rglob("*")):
        if path.is_file() and path.suffix != ".lock" and path.name != ".lock":
            kinds.setdefault(re.sub(r"\d+", "N", str(path.relative_to(index))), []).append(path)
    return kinds


def flip_a_bit(path: Path, generator: random.Random) -> None:
    """Changes a random bit of a file, as a disk does: its size stays."""
    content = bytearray(path.read_bytes())
    content[generator.randrange(len(content))] ^= 1 << generator.randrange(8)
    path.write_bytes(content)


def lose_the_end(path: Path, generator: random.Random) -> None:
    """Cuts a random part off the end of a file."""
    os.truncate(path, generator.randrange(path.stat().st_size))


def remove(path: Path, _generator: random.Random) -> None:
    """Removes a file."""
    path.unlink()


DAMAGES = (flip_a_bit, lose_the_end, remove)
