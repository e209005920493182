"""Removes the bytes of documents that were taken down from an index: their gradients, text and search entries.

What these documents contributed to sums over all documents (normalizers and second moments) stays.
"""

from pathlib import Path

import numpy as np
import pyarrow as pa

from bergson_core.errors import InvalidInput
from bergson_core.indexing.build_context import always_confirm, ignore_progress
from bergson_core.indexing.output_directory import index_write_lock
from bergson_core.indexing.publish import publish_next_generation
from bergson_core.schemas.results import Progress
from bergson_core.shards.shard import RowShape, Shard
from bergson_core.shards.shard_writer import ShardPosition, write_shard
from bergson_core.storage.damaged_shards import require_intact
from bergson_core.storage.deletion import remove_unpublished_files
from bergson_core.storage.document_lookup import HiddenRows
from bergson_core.storage.manifest import Manifest, ShardEntry, read_manifest
from bergson_core.utils.progress import ConfirmCallback, ProgressCallback


def compact_index(
    index: str | Path,
    *,
    report: ProgressCallback | None = None,
    confirm: ConfirmCallback | None = None,
) -> Manifest:
    """Rewrites the shards that hold documents that were taken down, without these documents.

    Readers see the old generation until the new one is complete; documents that were taken down are visible in neither.
    An index without such documents stays as it is.

    Args:
        index: The directory of the index.
        report: Called with the progress after every shard. It may raise to stop the compaction.
        confirm: Called before the new generation is published. It may raise to stop the compaction.

    Returns:
        The new manifest of the index, or the current one if there was nothing to remove.

    Raises:
        InvalidInput: No document would be left.
        IndexNotFound: There is no index in the directory.
        IndexBusy: Another process is writing to the index.
        IndexCorrupt: Files of the index, or its log of takedowns, are damaged.
        DiskFull: The disk is full.
        ReadOnly: The directory of the index may not be written to.
    """
    root = Path(index)
    report, confirm = report or ignore_progress, confirm or always_confirm
    read_manifest(root)  # raises IndexNotFound before the lock creates a file
    with index_write_lock(root):
        old = read_manifest(root)
        require_intact(root, old)
        hidden = HiddenRows(root, old.takedowns, old.compacted)
        hidden.refresh()
        # Takedowns that are recorded after this line are left to the next compaction.
        compacted = hidden.lines_read
        shape = RowShape.of(old)
        next_name = 1 + max(int(entry.name) for entry in old.shards)
        shards: list[ShardEntry] = []
        for done, entry in enumerate(old.shards, start=1):
            first_row = sum(shard.rows for shard in shards)
            shard = Shard.open(root, entry, shape)
            visible = np.flatnonzero(~hidden.mask(entry, shard.documents))
            if len(visible) == entry.rows:
                shards.append(entry.model_copy(update={"first_row": first_row}))
            elif len(visible):
                position = ShardPosition(first_row, entry.source, entry.generation)
                shards.append(_rewrite_shard(root, shard, visible, f"{next_name:05d}", position))
                next_name += 1
            report(Progress(stage="compact", done=done, total=len(old.shards), unit="shards"))
        if not shards:
            raise InvalidInput(f"all documents of {root.name} were taken down: delete the index instead")
        if shards == list(old.shards):
            remove_unpublished_files(root, old)  # of a compaction that was killed after it had published
            return old
        return publish_next_generation(root, old, shards, report=report, confirm=confirm, compacted=compacted)


def _rewrite_shard(
    root: Path, shard: Shard, visible: np.ndarray, name: str, position: ShardPosition
) -> ShardEntry:
    """Writes a shard under a new name that has only the rows with these numbers, unchanged."""
    documents = shard.documents.take(pa.array(visible))
    return write_shard(root, name, shard.blocks[visible], shard.scales[visible], documents, position).accept()
