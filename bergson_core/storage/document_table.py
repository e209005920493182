"""The text of a shard's documents: an Arrow file that is mapped, and read by columns. No torch here.

    shards/00000/rows.arrow   id, prompt, completion, metadata (JSON), loss, n_tokens

Not Parquet, since a query reads ten rows at random places: a memory-mapped Arrow file does that without decoding a row
group.
"""

import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from bergson_core.errors import IndexCorrupt
from bergson_core.storage.manifest import Manifest, ShardEntry
from bergson_core.utils.memory_map import map_buffer

if TYPE_CHECKING:
    from bergson_core.schemas.record import Record

DOCUMENT_TABLE_FILE: Final = "rows.arrow"
_SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("prompt", pa.string()),
        ("completion", pa.string()),
        ("metadata", pa.string()),
        ("loss", pa.float64()),
        ("n_tokens", pa.int32()),
    ]
)


def make_document_table(records: "Sequence[Record]", losses: np.ndarray, labelled: Sequence[int]) -> pa.Table:
    """The table of n documents with their losses [n], of which NaN become null, and labelled tokens [n]."""
    columns = [
        pa.array([record.id for record in records], pa.string()),
        pa.array([record.prompt for record in records], pa.string()),
        pa.array([record.completion for record in records], pa.string()),
        pa.array([json.dumps(record.metadata, default=str) for record in records], pa.string()),
        pa.array(losses, pa.float64(), from_pandas=True),
        pa.array(labelled, pa.int32()),
    ]
    return pa.table(columns, schema=_SCHEMA)


def write_document_table(path: Path, texts: pa.Table) -> None:
    """Writes such a table."""
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_file(file, _SCHEMA) as writer:
        writer.write_table(texts.combine_chunks())


def read_document_table(content: pa.Buffer) -> pa.Table:
    """The table in such a file, whose content was mapped (`files.mapped_bytes`)."""
    return pa.ipc.open_file(content).read_all()


def rows_with_ids(texts: pa.Table, ids: Iterable[str]) -> np.ndarray:
    """Which of the rows, bool [n], have one of these ids."""
    wanted = pc.SetLookupOptions(pa.array(ids, pa.string()))
    return pc.call_function("is_in", [texts["id"]], wanted).to_numpy()


def iter_document_tables(root: Path, manifest: Manifest) -> Iterator[tuple[ShardEntry, pa.Table]]:
    """Each shard of the index in directory `root` with its documents. Raises `IndexCorrupt` where these are gone."""
    for entry in manifest.shards:
        try:
            texts = read_document_table(map_buffer(root / "shards" / entry.name / DOCUMENT_TABLE_FILE))
        except (OSError, pa.ArrowInvalid) as error:
            raise IndexCorrupt(
                f"shard {entry.name} of the index {root.name} cannot be read: restore it from a copy or build the "
                f"index again ({error})"
            ) from error
        yield entry, texts


def document_at(texts: pa.Table, place: int) -> dict[str, Any]:
    """The document at this place: id, prompt, completion, metadata (as it was given), loss, n_tokens."""
    (row,) = texts.slice(place, 1).to_pylist()
    return row | {"metadata": json.loads(row["metadata"])}
