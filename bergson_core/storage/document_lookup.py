"""Documents by their ids, and which of them were taken down. No torch here.

Legend: n rows of a shard.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa

from bergson_core.errors import DocumentNotFound, IndexCorrupt
from bergson_core.storage.document_table import document_at, iter_document_tables, rows_with_ids
from bergson_core.storage.manifest import Manifest, ShardEntry, read_manifest
from bergson_core.storage.takedown_log import TakedownLog, record_takedown

T = TypeVar("T")


class HiddenRows:
    """Which rows of an index were taken down by now and are not gone yet. For one thread."""

    def __init__(self, root: Path, manifest: Manifest) -> None:
        self._log, self._compacted = TakedownLog(root), manifest.compacted
        self._generations: dict[str, int] = {}

    def update(self) -> bool:
        """Reads what is new in the log; whether there was anything."""
        before = self._log.lines
        new = self._log.read_new_lines()
        for line in new[max(0, self._compacted - before) :]:
            self._generations[line["id"]] = line["generation"]
        return bool(new)

    @property
    def lines(self) -> int:
        """Of the log, that were read."""
        return self._log.lines

    def of(self, entry: ShardEntry, texts: pa.Table) -> np.ndarray:
        """Which rows of a shard, bool [n], are hidden, as far as `update` has read."""
        ids = [one for one, generation in self._generations.items() if generation >= entry.generation]
        return rows_with_ids(texts, ids) if ids else np.zeros(len(texts), dtype=bool)


def take_down_document(index: str | Path, document_id: str) -> None:
    """Hides the document of that id from every answer from now on, in every process, for good.

    Raises `DocumentNotFound` where the index has none, or hides it already, and `IndexNotFound`.
    """
    root = Path(index)
    read_manifest(root)  # or else there is no log to lock

    def generation(manifest: Manifest) -> int:
        _find(root, manifest, document_id)
        return manifest.generation

    record_takedown(root, document_id, lambda: _in_newest(root, generation))


def find_document(index: str | Path, document_id: str) -> dict[str, Any]:
    """The document of that id, as `texts.document` gives it. Raises `DocumentNotFound` and `IndexNotFound`."""
    root = Path(index)
    return _in_newest(root, lambda manifest: _find(root, manifest, document_id))


def existing_ids(index: str | Path, ids: Sequence[str]) -> list[str]:
    """Those of `ids`, in their order, that documents of the index have which are not taken down."""
    root = Path(index)

    def existing(manifest: Manifest) -> set[str]:
        found, hidden = set[str](), HiddenRows(root, manifest)
        hidden.update()
        for entry, texts in iter_document_tables(root, manifest):
            here = rows_with_ids(texts, ids) & ~hidden.of(entry, texts)
            found.update(texts["id"].filter(pa.array(here)).to_pylist())
        return found

    found = _in_newest(root, existing)
    return [one for one in ids if one in found]


def _in_newest(root: Path, look: Callable[[Manifest], T]) -> T:
    """What `look` finds in the index; again where a compaction has taken the files of the old generation away."""
    while True:
        manifest = read_manifest(root)
        try:
            return look(manifest)
        except IndexCorrupt:
            if read_manifest(root).generation == manifest.generation:
                raise


def _find(root: Path, manifest: Manifest, document_id: str) -> dict[str, Any]:
    hidden = HiddenRows(root, manifest)
    hidden.update()
    for entry, texts in iter_document_tables(root, manifest):
        here = rows_with_ids(texts, [document_id])
        if here.any() and (here := here & ~hidden.of(entry, texts)).any():
            return document_at(texts, int(here.argmax()))
    raise DocumentNotFound(f"the index {root.name} has no document {document_id!r}")
