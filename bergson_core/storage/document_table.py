"""The documents of a shard: an Arrow file that is memory-mapped and read by columns.

<index>/shards/00000/rows.arrow   id, prompt, completion, metadata (JSON text), loss, n_tokens, weight; and, where
                                  documents were cut, document, start, end, count (`schemas.documents.Chunk`);
                                  and, of preference pairs, rejected, is_chat, reference_margin (`PairTexts`): their
                                  completion is the chosen one

A table that release 0.1.0 has written has no column `weight`.

The format is not Parquet, because a query reads ten documents at random positions: a memory-mapped Arrow file gives
them without decoding a row group.

Legend: n documents of a shard.
"""

import json
from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from bergson_core.errors import IndexCorrupt
from bergson_core.schemas.documents import Chunk
from bergson_core.schemas.record import Record
from bergson_core.storage.integrity import find_damaged_files
from bergson_core.storage.manifest import FileEntry, Manifest, ShardEntry
from bergson_core.storage.metadata_types import column_types, merge_column_types
from bergson_core.utils.memory_map import map_buffer

DOCUMENT_TABLE_FILE: Final = "rows.arrow"
_SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("prompt", pa.string()),
        ("completion", pa.string()),
        ("metadata", pa.string()),
        ("loss", pa.float64()),
        ("n_tokens", pa.int32()),
        ("weight", pa.float64()),
    ]
)
_CHUNK_FIELDS = [
    pa.field("document", pa.string()),
    pa.field("start", pa.int64()),
    pa.field("end", pa.int64()),
    pa.field("count", pa.int32()),
]
"""Columns of shards in which there are documents that were cut; null for the others."""

_PAIR_FIELDS = [
    pa.field("rejected", pa.string()),
    pa.field("is_chat", pa.bool_()),
    pa.field("reference_margin", pa.float64()),
]
"""Columns of shards in which there are preference pairs."""


def make_document_table(records: Sequence[Record], losses: np.ndarray, n_labelled: Sequence[int]) -> pa.Table:
    """Returns the table of n documents.

    Args:
        records: The documents, n of them.
        losses: Loss of each document, [n], in nats. NaN becomes null.
        n_labelled: Number of labelled tokens of each document, n of them.
    """
    columns = [
        pa.array([record.id for record in records], pa.string()),
        pa.array([record.prompt for record in records], pa.string()),
        pa.array([record.completion for record in records], pa.string()),
        pa.array([json.dumps(record.metadata, default=str) for record in records], pa.string()),
        pa.array(losses, pa.float64(), from_pandas=True),
        pa.array(n_labelled, pa.int32()),
        pa.array([record.weight for record in records], pa.float64()),
    ]
    table = pa.table(columns, schema=_SCHEMA)
    if any(record.chunk is not None for record in records):
        for field in _CHUNK_FIELDS:
            values = [getattr(record.chunk, field.name, None) for record in records]
            table = table.append_column(field, pa.array(values, field.type))
    if any(record.pair is not None for record in records):
        for field in _PAIR_FIELDS:
            values = [getattr(record.pair, field.name, None) for record in records]
            table = table.append_column(field, pa.array(values, field.type))
    return table


def write_document_table(path: Path, documents: pa.Table) -> None:
    """Writes a table of documents as an Arrow file."""
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_file(file, documents.schema) as writer:
        writer.write_table(documents.combine_chunks())


def read_document_table(content: pa.Buffer) -> pa.Table:
    """Returns the table in the content of an Arrow file, without copying it."""
    return pa.ipc.open_file(content).read_all()


def iter_document_tables(root: Path, manifest: Manifest) -> Iterator[tuple[ShardEntry, pa.Table]]:
    """Yields each shard of the index in directory `root` with the table of its documents.

    Raises:
        IndexCorrupt: A table is missing, was altered or cannot be read.
    """
    for entry, documents in iter_readable_tables(root, manifest):
        if isinstance(documents, IndexCorrupt):
            raise documents
        yield entry, documents


def iter_readable_tables(
    root: Path, manifest: Manifest
) -> Iterator[tuple[ShardEntry, pa.Table | IndexCorrupt]]:
    """Yields each shard of the index in directory `root` with the table of its documents, or with what is wrong.

    A table is compared with the manifest when it is read for the first time, and after it has changed.
    """
    paths = {entry.name: f"shards/{entry.name}/{DOCUMENT_TABLE_FILE}" for entry in manifest.shards}
    files = [file for entry in manifest.shards for file in entry.files if file.path == paths[entry.name]]
    damage = _find_damage(root, tuple((file, _stamp(root / file.path)) for file in files))
    for entry in manifest.shards:
        path = paths[entry.name]
        try:
            if path not in damage:
                yield entry, read_document_table(map_buffer(root / path))
                continue
            problem = damage[path]
        except (OSError, pa.ArrowInvalid) as error:
            problem = str(error)
        yield (
            entry,
            IndexCorrupt(
                f"shard {entry.name} of the index {root.name} cannot be read: restore it from a copy or build the "
                f"index again ({problem})"
            ),
        )


def _stamp(path: Path) -> tuple[int, int, int] | None:
    try:
        stat = path.stat()
    except OSError:
        return None
    return stat.st_size, stat.st_mtime_ns, stat.st_ino


@lru_cache(maxsize=16)
def _find_damage(
    root: Path, files: tuple[tuple[FileEntry, tuple[int, int, int] | None], ...]
) -> dict[str, str]:
    """Returns what is wrong with each damaged file, by its path. The stamps say for how long that is so."""
    return {file.path: problem for file, problem in find_damaged_files(root, [file for file, _ in files])}


def read_metadata(documents: pa.Table) -> Iterator[dict[str, Any]]:
    """Yields the metadata of each document, as it was when the document was added."""
    return map(json.loads, documents["metadata"].to_pylist())


def read_column_types(root: Path, manifest: Manifest) -> dict[str, str]:
    """Returns the type of each metadata column of an index, read from the documents where it was not recorded.

    Raises:
        IndexCorrupt: A table is missing or cannot be read.
    """
    by_shard = [
        column_types(read_metadata(documents)) if entry.metadata_types is None else entry.metadata_types
        for entry, documents in iter_document_tables(root, manifest)
    ]
    return merge_column_types(manifest.spec.columns.metadata, by_shard)


def mask_of_ids(documents: pa.Table, ids: Iterable[str]) -> np.ndarray:
    """Returns which of the documents have one of these ids, bool [n]."""
    return _mask_of(documents["id"], ids)


def _mask_of(column: pa.ChunkedArray, ids: Iterable[str]) -> np.ndarray:
    # UTF-8 cannot hold half of a surrogate pair, so that no document has an id with one.
    encoded = [document_id.encode(errors="surrogatepass") for document_id in ids]
    options = pc.SetLookupOptions(pa.array(encoded, pa.binary()))
    return pc.call_function("is_in", [column.cast(pa.binary())], options).to_numpy()


def mask_of_documents(documents: pa.Table, ids: Iterable[str]) -> np.ndarray:
    """Returns which of the documents have one of these ids, or are chunks of a document that has, bool [n]."""
    ids = list(ids)
    mask = mask_of_ids(documents, ids)
    if _has_chunks(documents):
        mask = mask | _mask_of(documents["document"], ids)
    return mask


def read_whole_ids(documents: pa.Table) -> pa.ChunkedArray:
    """Returns for each document its id, or for a chunk that of the whole document [n]."""
    if not _has_chunks(documents):
        return documents["id"]
    return pc.call_function("coalesce", [documents["document"], documents["id"]])


def read_whole_id(documents: pa.Table, position: int) -> str:
    """Returns the id of the document at a position, or for a chunk that of the whole document."""
    whole = documents["document"][position].as_py() if _has_chunks(documents) else None
    return documents["id"][position].as_py() if whole is None else whole


def _has_chunks(documents: pa.Table) -> bool:
    return "document" in documents.column_names


def read_document(documents: pa.Table, position: int) -> dict[str, Any]:
    """Returns a document of the table: id, prompt, completion, metadata, loss, n_tokens, weight, chunk and rejected.

    The metadata is a dictionary, as it was when the document was added. The chunk is None for a document that was not
    cut. `rejected` is None for a document that is no preference pair; one that is has `is_chat` and `reference_margin`
    too. A table of release 0.1.0 has no weights.
    """
    (document,) = documents.slice(position, 1).to_pylist()
    document.setdefault("rejected", None)
    parts = {field.name: document.pop(field.name, None) for field in _CHUNK_FIELDS}
    chunk = None if parts["document"] is None else Chunk.model_validate(parts)
    return document | {"metadata": json.loads(document["metadata"]), "chunk": chunk}
