"""Removes from an index the bytes of the documents that were taken down: their gradients, text and search entries.

What they added to sums over all documents, normalizers and second moments, stays.
"""

from pathlib import Path

import numpy as np
import pyarrow as pa

from bergson_core.errors import InvalidInput
from bergson_core.indexing.output_directory import index_write_lock
from bergson_core.indexing.publish import publish_next_generation
from bergson_core.schemas.results import Progress
from bergson_core.shards.shard import RowShape, Shard, ShardPosition, write_shard
from bergson_core.storage.document_lookup import HiddenRows
from bergson_core.storage.manifest import Manifest, ShardEntry, read_manifest
from bergson_core.utils.progress import ConfirmCallback, ProgressCallback


def compact_index(
    index: str | Path,
    *,
    report: ProgressCallback = lambda progress: None,
    confirm: ConfirmCallback = lambda: None,
) -> Manifest:
    """Writes the shards that hold documents that were taken down anew without these, and returns the new manifest.

    Readers see the old generation until the new one is whole, and no document that was taken down in either. An index
    without such documents stays as it is. `report` and `confirm` are those of `build_index`.
    Raises `InvalidInput` where no document would be left, `IndexNotFound`, `IndexBusy` and `DiskFull`.
    """
    root = Path(index)
    read_manifest(root)  # or else there is nothing to lock
    with index_write_lock(root):
        old = read_manifest(root)
        shape, hidden = RowShape.of(old), HiddenRows(root, old)
        hidden.update()
        compacted, next_name = hidden.lines, 1 + max(int(entry.name) for entry in old.shards)
        shards: list[ShardEntry] = []
        for done, entry in enumerate(old.shards, start=1):
            first_row = sum(shard.rows for shard in shards)
            shard = Shard.open(root, entry, shape)
            kept = np.flatnonzero(~hidden.of(entry, shard.documents))
            if len(kept) == entry.rows:
                shards.append(entry.model_copy(update={"first_row": first_row}))
            elif len(kept):
                place = ShardPosition(first_row, entry.source, entry.generation)
                shards.append(_without(root, shard, kept, f"{next_name:05d}", place))
                next_name += 1
            report(Progress(stage="compact", done=done, total=len(old.shards), unit="shards"))
        if not shards:
            raise InvalidInput(f"all documents of {root.name} were taken down: delete the index instead")
        if shards == list(old.shards):
            return old
        return publish_next_generation(root, old, shards, report=report, confirm=confirm, compacted=compacted)


def _without(root: Path, shard: Shard, kept: np.ndarray, name: str, place: ShardPosition) -> ShardEntry:
    """The shard of the rows `kept` alone, as they are."""
    texts = shard.documents.take(pa.array(kept))
    return write_shard(root, name, shard.blocks[kept], shard.scales[kept], texts, place).accept()
