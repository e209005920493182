"""The files of a shard, and how they are read through memory maps.

Legend: n rows of a shard, m modules, d numbers per module, w entries that are stored of them.

    shards/00000/gradients.bin   the blocks [n, m, w] of a codec (codecs.py)
    shards/00000/scales.bin      their scales [n, .]
    shards/00000/rows.arrow      the documents (storage/document_table.py)

shard_writer.py writes these files. While an index is built, two more lie beside them: shard.json, the shard's entry of
the manifest with hashes of all files, and second_moment.safetensors, the second moment of its rows.
"""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Final

import numpy as np
import pyarrow as pa
from jaxtyping import Int
from torch import Tensor

from bergson_core.schemas.build import RowKind
from bergson_core.shards.codecs import CODECS, Codec
from bergson_core.storage.document_table import DOCUMENT_TABLE_FILE, read_document_table
from bergson_core.storage.manifest import Manifest, ShardEntry
from bergson_core.utils.memory_map import map_array, map_buffer, release_pages

BLOCKS_FILE: Final = "gradients.bin"
SCALES_FILE: Final = "scales.bin"


@dataclass(frozen=True)
class RowShape:
    """The shape of a row: blocks of `width` numbers, one for each of `modules` modules, stored as `kind`."""

    kind: RowKind
    modules: int
    width: int

    @classmethod
    def of(cls, manifest: Manifest) -> "RowShape":
        """Returns the shape of the rows of an index."""
        modules = len(manifest.modules)
        return cls(manifest.spec.gradients.rows, modules, manifest.dimensions // modules)

    @property
    def codec(self) -> Codec:
        """The codec that stores such rows."""
        return CODECS[self.kind]

    @property
    def block_shape(self) -> tuple[int, int]:
        """The shape (m, w) of a row's stored blocks."""
        return self.modules, self.codec.block_entries(self.width)

    @property
    def scale_entries(self) -> int:
        """The number of scales that are stored of a row."""
        return self.codec.scale_entries(self.modules)

    @property
    def row_bytes(self) -> int:
        """The bytes that a stored row takes."""
        return self.codec.row_bytes(self.modules, self.width)


@dataclass(frozen=True)
class Shard:
    """A published shard, memory-mapped.

    Attributes:
        entry: The shard's entry of the manifest.
        shape: The shape of its rows.
        blocks: The stored blocks [n, m, w].
        scales: Their scales [n, .].
        document_table: The content of the Arrow file with the documents.
    """

    entry: ShardEntry
    shape: RowShape
    blocks: np.ndarray
    scales: np.ndarray
    document_table: pa.Buffer

    @classmethod
    def open(cls, root: Path, entry: ShardEntry, shape: RowShape) -> "Shard":
        """Maps the files of a shard of the index in directory `root`, which `storage.integrity` has checked."""
        directory, codec = root / "shards" / entry.name, shape.codec
        blocks = map_array(directory / BLOCKS_FILE, codec.block_dtype, (entry.rows, *shape.block_shape))
        scales = map_array(directory / SCALES_FILE, codec.scale_dtype, (entry.rows, shape.scale_entries))
        return cls(entry, shape, blocks, scales, map_buffer(directory / DOCUMENT_TABLE_FILE))

    @cached_property
    def documents(self) -> pa.Table:
        """The table of the shard's documents, with the columns of `storage.document_table`."""
        return read_document_table(self.document_table)

    def offsets_of(self, row_numbers: Int[np.ndarray, " k"]) -> Int[np.ndarray, " _"]:
        """Returns the row numbers within the shard of those of these rows of the index that are in it."""
        offsets = row_numbers - self.entry.first_row
        return offsets[(offsets >= 0) & (offsets < self.entry.rows)]

    def rows(self, numbers: slice | np.ndarray) -> Tensor:
        """Returns the decoded rows [., m, d] float32 with these row numbers within the shard.

        A scan of the shard by slices leaves none of the mapped pages in memory.
        """
        blocks, scales = self.blocks[numbers], self.scales[numbers]
        rows = self.shape.codec.decode(blocks, scales, self.shape.width)
        if isinstance(numbers, slice):
            release_pages(blocks)
            release_pages(scales)
        return rows
