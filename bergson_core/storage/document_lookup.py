"""Finds documents by their ids, hides them, and knows which of them are hidden.

Legend: n documents of a shard.
"""

from collections.abc import Callable, Hashable, Iterable, Sequence
from functools import lru_cache
from pathlib import Path
from threading import Lock
from typing import Any, Final, TypeVar

import numpy as np
import pyarrow as pa

from bergson_core.errors import DocumentNotFound, IndexCorrupt, IndexNotFound
from bergson_core.storage.document_table import (
    iter_document_tables,
    iter_readable_tables,
    mask_of_documents,
    mask_of_ids,
    read_document,
    read_whole_ids,
)
from bergson_core.storage.manifest import MANIFEST_FILE, Manifest, ShardEntry, read_manifest
from bergson_core.storage.takedown_log import TakedownHead, TakedownLog, record_takedown

T = TypeVar("T")


_MAX_READERS: Final = 8
"""Indexes whose takedowns a process keeps in memory for looking documents up. 100,000 of them take about 20 MB."""


class HiddenRows:
    """The documents of an index that were taken down and whose bytes are still there. Threads may share an instance.

    Args:
        root: Directory of the index.
        takedowns: The head of the log that its manifest has.
        compacted: The number of takedowns that its manifest has as compacted.
    """

    def __init__(self, root: Path, takedowns: TakedownHead | None, compacted: int) -> None:
        self._log, self._compacted = TakedownLog(root, takedowns), compacted
        self._generations: dict[str, int] = {}
        self._lock = Lock()

    def refresh(self) -> bool:
        """Reads the new lines of the log, and returns whether there were any.

        A log that was restored from a copy is read from its beginning. What was hidden before stays hidden.

        Raises:
            IndexCorrupt: The log is damaged.
        """
        with self._lock:
            new = self._log.read_new_lines()
            before = self._log.end.lines - len(new)
            for line in new[max(0, self._compacted - before) :]:
                self._generations[line["id"]] = max(line["generation"], self._generations.get(line["id"], 0))
            return bool(new)

    @property
    def lines_read(self) -> int:
        """Number of lines of the log that were read."""
        return self._log.end.lines

    def mask(self, entry: ShardEntry, documents: pa.Table) -> np.ndarray:
        """Returns which documents of a shard are hidden, bool [n], as of the last `refresh`."""
        with self._lock:
            ids = [id for id, generation in self._generations.items() if generation >= entry.generation]
        return mask_of_documents(documents, ids) if ids else np.zeros(len(documents), dtype=bool)


@lru_cache(_MAX_READERS)
def _shared_hidden_rows(
    root: Path, takedowns: TakedownHead | None, compacted: int, *identity: Hashable
) -> HiddenRows:
    return HiddenRows(root, takedowns, compacted)


def _read_hidden_rows(root: Path, manifest: Manifest) -> HiddenRows:
    """Returns the hidden documents as of now. The log is read from its beginning once for each generation."""
    try:
        stat = (root / MANIFEST_FILE).stat()
    except FileNotFoundError:
        raise IndexNotFound.for_name(root.name) from None
    # No other index of the same name has all of these. A copy keeps all but the time of the last change of the inode.
    identity = (manifest.created_at, manifest.generation, stat.st_ino, stat.st_mtime_ns, stat.st_ctime_ns)
    head = manifest.takedowns  # hashable, since the model is frozen
    hidden = _shared_hidden_rows(root, head, manifest.compacted, *identity)  # pyright: ignore[reportArgumentType]
    hidden.refresh()
    return hidden


def take_down_document(index: str | Path, document_id: str) -> None:
    """Hides a document from every answer, in every process, from now on and for good, with all of its chunks.

    Args:
        index: Directory of the index.
        document_id: Id of the document. That of a chunk hides the chunk alone.

    Raises:
        IndexNotFound: No index is published there.
        DocumentNotFound: The index has no such document, or hides it already.
        IndexBusy: Another process keeps the lock of the takedowns.
    """
    root = Path(index)
    read_manifest(root)  # Without an index there is no directory to lock the log in.

    def find_generation(manifest: Manifest) -> int:
        _find_document(root, manifest, document_id)
        return manifest.generation

    record_takedown(root, document_id, lambda: _with_newest_manifest(root, find_generation))


def find_document(index: str | Path, document_id: str) -> dict[str, Any]:
    """Returns a document of an index as a dictionary.

    Args:
        index: Directory of the index.
        document_id: Id of the document.

    Returns:
        The document's id, prompt, completion, metadata, loss, n_tokens and chunk. For the id of a document that was cut
        into chunks, the text is that of all of them, loss and n_tokens are sums over them, and `chunks` lists their
        ids in order.

    Raises:
        IndexNotFound: No index is published there.
        DocumentNotFound: The index has no such document, or hides it.
    """
    root = Path(index)
    return _with_newest_manifest(root, lambda manifest: _find_document(root, manifest, document_id))


def find_documents(index: str | Path, ids: Iterable[str]) -> dict[str, dict[str, Any]]:
    """Returns those of the documents with these ids that the index has and does not hide, by their ids.

    Args:
        index: Directory of the index.
        ids: Ids of documents, or of chunks. The id of a document that was cut into chunks finds nothing.

    Raises:
        IndexNotFound: No index is published there.
        IndexCorrupt: A document is not found, and might be in a shard that is damaged.
    """
    root, wanted = Path(index), set(ids)

    def find(manifest: Manifest) -> dict[str, dict[str, Any]]:
        hidden, found = _read_hidden_rows(root, manifest), dict[str, dict[str, Any]]()
        damage: IndexCorrupt | None = None
        for entry, documents in iter_readable_tables(root, manifest):
            if isinstance(documents, IndexCorrupt):
                damage = documents
                continue
            mask = mask_of_ids(documents, wanted)
            if mask.any():
                for position in np.flatnonzero(mask & ~hidden.mask(entry, documents)).tolist():
                    document = read_document(documents, position)
                    found[document["id"]] = document
        if damage is not None and len(found) < len(wanted):
            raise damage
        return found

    return _with_newest_manifest(root, find)


def find_existing_ids(index: str | Path, ids: Sequence[str]) -> list[str]:
    """Returns those of `ids`, in their order, that documents of the index have which are not taken down.

    A document that was cut into chunks has its own id and those of the chunks.
    """
    root = Path(index)

    def find_ids(manifest: Manifest) -> set[str]:
        existing, hidden = set[str](), _read_hidden_rows(root, manifest)
        for entry, documents in iter_document_tables(root, manifest):
            mask = pa.array(mask_of_documents(documents, ids) & ~hidden.mask(entry, documents))
            for column in (documents["id"], read_whole_ids(documents)):
                existing.update(column.filter(mask).to_pylist())
        return existing

    existing = _with_newest_manifest(root, find_ids)
    return [id for id in ids if id in existing]


def _with_newest_manifest(root: Path, function: Callable[[Manifest], T]) -> T:
    """Calls `function` with the manifest, again if a compaction has removed the files of its generation meanwhile."""
    while True:
        manifest = read_manifest(root)
        try:
            return function(manifest)
        except IndexCorrupt:
            if read_manifest(root).generation == manifest.generation:
                raise


def _find_document(root: Path, manifest: Manifest, document_id: str) -> dict[str, Any]:
    hidden, chunks = _read_hidden_rows(root, manifest), []
    damage: IndexCorrupt | None = None
    for entry, documents in iter_readable_tables(root, manifest):
        if isinstance(documents, IndexCorrupt):
            damage = documents  # a document of another shard can be read, and taken down, all the same
            continue
        mask = mask_of_documents(documents, [document_id])
        if mask.any() and (mask := mask & ~hidden.mask(entry, documents)).any():
            for position in np.flatnonzero(mask).tolist():
                document = read_document(documents, position)
                if document["id"] == document_id:
                    return document
                chunks.append(document)
    if damage is not None:
        raise damage
    if not chunks:
        raise DocumentNotFound(f"the index {root.name} has no document {document_id!r}")
    return _join_chunks(document_id, chunks)


def _join_chunks(document_id: str, chunks: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Returns a document that was cut, from those of its chunks that are visible."""
    chunks = sorted(chunks, key=lambda chunk: chunk["chunk"].start)
    text, end = "", 0
    for chunk in chunks:
        text += chunk["prompt"][max(0, end - chunk["chunk"].start) :]
        end = chunk["chunk"].end
    losses = [chunk["loss"] for chunk in chunks]
    return chunks[0] | {
        "id": document_id,
        "prompt": text,
        "loss": None if None in losses else sum(losses),
        "n_tokens": sum(chunk["n_tokens"] for chunk in chunks),
        "chunk": None,
        "chunks": [chunk["id"] for chunk in chunks],
    }
