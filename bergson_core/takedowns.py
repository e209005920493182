"""Takedowns: documents that nobody is shown any more, from the moment that the log has them. No torch here.

    <index>/takedowns.jsonl   {"id", "generation", "at"} a line, only ever appended to

A line hides the rows of its id that were added in its generation or before, so that a document may be added again
under an id that was taken down. Whoever answers looks at the log's size first, and reads what is new; so a takedown
needs no worker, and survives restarts. Compaction (`compaction`) removes the rows themselves.
"""

import json
import os
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa
from filelock import FileLock

from bergson_core.errors import DocumentNotFound
from bergson_core.files import sync
from bergson_core.manifest import Manifest, ShardEntry, read_manifest
from bergson_core.texts import document, has_ids, texts_of

_LOG, _LOCK = "takedowns.jsonl", ".takedowns.lock"
_ADDED_AT: Final = "generation"


def take_down(index: str | Path, document_id: str) -> None:
    """Hides the document of that id from every answer from now on, in every process, for good.

    Raises `DocumentNotFound` where the index has none, or hides it already, and `IndexNotFound`.
    """
    root = Path(index)
    manifest = read_manifest(root)
    with FileLock(root / _LOCK):
        _find(root, manifest, document_id)
        line = {"id": document_id, _ADDED_AT: manifest.generation, "at": _now()}
        with (root / _LOG).open("ab+") as file:
            _mend(file)
            file.write(json.dumps(line).encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())
        sync(root)


def find_document(index: str | Path, document_id: str) -> dict[str, Any]:
    """The document of that id, as `texts.document` gives it. Raises `DocumentNotFound` and `IndexNotFound`."""
    root = Path(index)
    return _find(root, read_manifest(root), document_id)


def existing_ids(index: str | Path, ids: Sequence[str]) -> list[str]:
    """Those of `ids`, in their order, that documents of the index have which are not taken down."""
    root, found = Path(index), set()
    manifest = read_manifest(root)
    hidden = Hidden(root, manifest)
    for entry, texts in texts_of(root, manifest):
        here = has_ids(texts, ids) & ~hidden.of(entry, texts)
        found.update(texts["id"].filter(pa.array(here)).to_pylist())
    return [one for one in ids if one in found]


def _find(root: Path, manifest: Manifest, document_id: str) -> dict[str, Any]:
    hidden = Hidden(root, manifest)
    for entry, texts in texts_of(root, manifest):
        here = has_ids(texts, [document_id])
        if here.any() and (here := here & ~hidden.of(entry, texts)).any():
            return document(texts, int(here.argmax()))
    raise DocumentNotFound(f"the index {root.name} has no document {document_id!r}")


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _mend(file: Any) -> None:
    """Cuts off a line that a process was killed in the middle of: nobody was told that it stood."""
    content = _whole(file)
    file.truncate(len(content))


def _whole(file: Any, offset: int = 0) -> bytes:
    file.seek(offset)
    content = file.read()
    return content[: content.rfind(b"\n") + 1]


class Log:
    """Reads the log of an index from the line `skip` on; each line once."""

    def __init__(self, root: Path, skip: int = 0) -> None:
        self._path, self._offset, self._skip = root / _LOG, 0, skip
        self.lines = 0
        """That were read so far, the skipped ones too."""

    def new(self) -> list[dict[str, Any]]:
        """What was appended since the last call."""
        try:
            if self._path.stat().st_size <= self._offset:
                return []
            with self._path.open("rb") as file:
                content = _whole(file, self._offset)
        except FileNotFoundError:
            return []
        self._offset += len(content)
        lines = content.splitlines()
        before, self.lines = self.lines, self.lines + len(lines)
        return [json.loads(line) for line in lines[max(0, self._skip - before) :]]


class Hidden:
    """Which rows of an open index are hidden by now. For one thread."""

    def __init__(self, root: Path, manifest: Manifest) -> None:
        self._log = Log(root, manifest.compacted)
        self._generations: dict[str, int] = {}

    def update(self) -> bool:
        """Reads what is new in the log; whether there was anything."""
        new = self._log.new()
        for line in new:
            self._generations[line["id"]] = line[_ADDED_AT]
        return bool(new)

    @property
    def lines(self) -> int:
        """Of the log, that were read."""
        return self._log.lines

    def of(self, entry: ShardEntry, texts: pa.Table) -> np.ndarray:
        """Which rows of a shard, bool [n], are hidden."""
        self.update()
        ids = [one for one, generation in self._generations.items() if generation >= entry.generation]
        return has_ids(texts, ids) if ids else np.zeros(entry.rows, dtype=bool)
