"""Merges the small shards that many appends have left side by side, so that a search opens and reads few files.

The next append merges them, and publishes them together with the shards that it adds. Rows keep their numbers and their
bytes. Their lengths are computed again, as after a compaction.
"""

from collections.abc import Iterator, Sequence
from itertools import groupby
from pathlib import Path
from typing import Final

import numpy as np
import pyarrow as pa

from bergson_core.indexing.shard_builder import rows_per_shard
from bergson_core.shards.shard import RowShape, Shard
from bergson_core.shards.shard_writer import ShardPosition, write_shard
from bergson_core.storage.document_lookup import HiddenRows
from bergson_core.storage.manifest import ShardEntry
from bergson_core.utils.background import stop_if_abandoned

MERGED_SHARDS: Final = 16
"""Number of small shards side by side from which on they are merged, so that few appends copy rows."""


def merge_small_shards(
    root: Path, shards: Sequence[ShardEntry], shape: RowShape, hidden: HiddenRows, next_name: int
) -> list[ShardEntry]:
    """Returns the shards of an index, with runs of small shards of appends written anew as fewer, larger ones.

    A shard is small if it has fewer than half of the rows of the shards that a build of the whole index would make. A
    merged shard is as new as the newest of its parts, so that takedowns of which some of its parts are too new would no
    longer count for the others: a shard with documents that were taken down stays as it is until it is compacted.

    Args:
        root: The directory of the index. The caller holds its lock.
        shards: The published shards, in order. A takedown that is recorded meanwhile counts for all of them.
        shape: The shape of a row.
        hidden: The documents that were taken down so far.
        next_name: The number that is the name of the first merged shard.
    """
    max_rows = rows_per_shard(shape, sum(entry.rows for entry in shards))
    merged: list[ShardEntry] = []
    for is_small, neighbours in groupby(shards, lambda entry: _is_small(entry, max_rows)):
        run = list(neighbours)
        if not is_small or len(run) < MERGED_SHARDS:
            merged += run
            continue
        for parts in _divide(root, run, shape, hidden, max_rows):
            stop_if_abandoned()
            if len(parts) == 1:
                merged.append(parts[0].entry)
            else:
                merged.append(_write_merged(root, parts, f"{next_name:05d}"))
                next_name += 1
    return merged


def _is_small(entry: ShardEntry, max_rows: int) -> bool:
    return entry.generation > 1 and 2 * entry.rows < max_rows


def _divide(
    root: Path, run: Sequence[ShardEntry], shape: RowShape, hidden: HiddenRows, max_rows: int
) -> Iterator[list[Shard]]:
    """Divides a run of shards into parts that become one shard each."""
    parts: list[Shard] = []
    for entry in run:
        shard = Shard.open(root, entry, shape)
        has_hidden = bool(hidden.mask(entry, shard.documents).any())
        if parts and (
            has_hidden
            or sum(part.entry.rows for part in parts) + entry.rows > max_rows
            or shard.documents.schema != parts[0].documents.schema  # not all have columns of chunks
        ):
            yield parts
            parts = []
        if has_hidden:
            yield [shard]
        else:
            parts.append(shard)
    if parts:
        yield parts


def _write_merged(root: Path, parts: Sequence[Shard], name: str) -> ShardEntry:
    """Writes the rows of several shards as one."""
    first = parts[0].entry
    sources = dict.fromkeys(source for part in parts for source in part.entry.all_sources)
    position = ShardPosition(first.first_row, first.source, max(part.entry.generation for part in parts))
    entry = write_shard(
        root,
        name,
        np.concatenate([part.blocks for part in parts]),
        np.concatenate([part.scales for part in parts]),
        pa.concat_tables([part.documents for part in parts]),
        position,
    ).accept()
    return entry.model_copy(update={"merged_sources": tuple(sources)[1:]})
