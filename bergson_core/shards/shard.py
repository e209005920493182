"""Rows on disk: written as a whole shard or not at all, read through memory maps.

Legend: n rows of a shard, m layers, d numbers a layer, w entries that are kept of them.

    shards/00000/gradients.bin   blocks [n, m, w] of a codec (`codecs`)
    shards/00000/scales.bin      its scales [n, .]
    shards/00000/rows.arrow      the documents (`texts`)

A shard is made in a directory beside its place, whose name nobody else has, flushed to disk, and renamed by whoever
holds the index's lock. So a process that everybody takes for dead may go on writing and harm nothing. The name of a
shard that was published is never used again.
"""

import errno
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Final
from uuid import uuid4

import numpy as np
import pyarrow as pa
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from bergson_core.errors import DiskFull
from bergson_core.gradients.preconditioner import SecondMoment
from bergson_core.schemas.build import RowKind
from bergson_core.schemas.record import Record
from bergson_core.shards.codecs import CODECS, Codec
from bergson_core.storage.document_table import (
    DOCUMENT_TABLE_FILE,
    make_document_table,
    read_document_table,
    write_document_table,
)
from bergson_core.storage.integrity import file_entry
from bergson_core.storage.manifest import Manifest, ShardEntry
from bergson_core.utils.atomic_files import fsync_path
from bergson_core.utils.memory_map import map_array, map_buffer, release_pages

_BLOCKS, _SCALES = "gradients.bin", "scales.bin"
_MOMENT, _ENTRY = "second_moment.safetensors", "shard.json"
_FULL: Final = {
    errno.ENOSPC: "no space is left",
    errno.EDQUOT: "the quota is used up",
    errno.EFBIG: "a file would be larger than is allowed",
}


@dataclass(frozen=True)
class RowShape:
    """What a row consists of: `layers` blocks of `width` numbers, kept as `kind`."""

    kind: RowKind
    modules: int
    width: int

    @classmethod
    def of(cls, manifest: Manifest) -> "RowShape":
        layers = len(manifest.modules)
        return cls(manifest.spec.gradients.rows, layers, manifest.dimensions // layers)

    @property
    def codec(self) -> Codec:
        return CODECS[self.kind]

    @property
    def block_shape(self) -> tuple[int, int]:
        """(m, w)."""
        return self.modules, self.codec.entries(self.width)

    @property
    def scale_entries(self) -> int:
        return self.codec.scales(self.modules)

    @property
    def row_bytes(self) -> int:
        return self.codec.row_bytes(self.modules, self.width)


class ShardWriter:
    """Collects the rows of one shard in memory and writes it whole. See `write`.

    A loss that is NaN marks a row that was skipped; it is null in the documents' table.
    """

    def __init__(self, root: Path, name: str, rows: int, shape: RowShape) -> None:
        self._root, self._name, codec = root, name, shape.codec
        self._blocks = np.zeros((rows, *shape.block_shape), dtype=codec.block_type)
        self._scales = np.zeros((rows, shape.scale_entries), dtype=codec.scale_type)
        self._losses = np.zeros(rows)

    def put(self, numbers: np.ndarray, blocks: np.ndarray, scales: np.ndarray, losses: np.ndarray) -> None:
        """Stores what the codec made of b rows, and their losses [b], at these places of the shard."""
        self._blocks[numbers], self._scales[numbers], self._losses[numbers] = blocks, scales, losses

    @property
    def skipped(self) -> np.ndarray:
        """Which rows [n] were skipped."""
        return np.isnan(self._losses)

    def write(
        self,
        records: Sequence[Record],
        labelled: Sequence[int],
        moment: SecondMoment | None,
        position: "ShardPosition",
    ) -> "WrittenShard":
        """Writes the shard of these documents, whose labelled tokens [n] are counted."""
        texts = make_document_table(records, self._losses, labelled)
        return write_shard(self._root, self._name, self._blocks, self._scales, texts, position, moment)


@dataclass(frozen=True)
class ShardPosition:
    """Where in an index a shard belongs, and what made it (`manifest.ShardEntry`)."""

    first_row: int
    source: str
    generation: int = 1


@dataclass(frozen=True)
class WrittenShard:
    """A shard that is whole and on disk in the directory `aside`; an index has it once it is accepted."""

    entry: ShardEntry
    directory: Path

    def accept(self) -> ShardEntry:
        """Gives the shard its name, which another one loses."""
        target = self.directory.with_name(self.entry.name)
        shutil.rmtree(target, ignore_errors=True)
        self.directory.rename(target)
        fsync_path(target.parent)
        return self.entry


def remove_unaccepted_shards(root: Path) -> None:
    """Removes what was never accepted of shards."""
    for path in (root / "shards").glob(".*.tmp"):
        shutil.rmtree(path, ignore_errors=True)


def write_shard(
    root: Path,
    name: str,
    blocks: np.ndarray,
    scales: np.ndarray,
    texts: pa.Table,
    position: ShardPosition,
    moment: SecondMoment | None = None,
) -> WrittenShard:
    """Writes all of a shard and flushes it to disk."""
    directory = root / "shards" / f".{name}.{uuid4().hex}.tmp"
    directory.mkdir(parents=True)
    try:
        write_array(directory / _BLOCKS, blocks)
        write_array(directory / _SCALES, scales)
        write_document_table(directory / DOCUMENT_TABLE_FILE, texts)
        if moment is not None:
            save_file({"total": moment.total.cpu()}, directory / _MOMENT)
        files = tuple(
            file_entry(directory / file).model_copy(update={"path": f"shards/{name}/{file}"})
            for file in (_BLOCKS, _SCALES, DOCUMENT_TABLE_FILE)
        )
        entry = ShardEntry(
            name=name,
            first_row=position.first_row,
            rows=len(blocks),
            tokens=int(sum(texts["n_tokens"].to_pylist())),
            skipped=texts["loss"].null_count,
            generation=position.generation,
            source=position.source,
            files=files,
        )
        (directory / _ENTRY).write_text(entry.model_dump_json())
        for path in directory.iterdir():
            fsync_path(path)
    except BaseException:
        shutil.rmtree(directory, ignore_errors=True)
        raise
    fsync_path(directory)
    return WrittenShard(entry, directory)


def write_array(path: Path, array: np.ndarray) -> None:
    """Writes the numbers alone; unlike `tofile`, with the reason where that fails."""
    with path.open("wb") as file:
        file.write(np.ascontiguousarray(array).data.cast("B") if array.size else b"")


@contextmanager
def translate_disk_errors(root: Path) -> Iterator[None]:
    """Raises `DiskFull` where what is done here has no room; each library that writes says so in its own way."""
    try:
        yield
    except (OSError, RuntimeError, SafetensorError) as error:
        number = getattr(error, "errno", None)
        full = [why for code, why in _FULL.items() if code == number or os.strerror(code) in str(error)]
        if not full:
            raise
        raise DiskFull(
            f"{root} cannot be written, {full[0]}: make room and start again, finished work is kept ({error})"
        ) from error


def find_finished_shard(root: Path, name: str, position: ShardPosition, rows: int) -> ShardEntry | None:
    """The entry of a shard of so many rows that an earlier run has finished for this very place."""
    try:
        entry = ShardEntry.model_validate_json((root / "shards" / name / _ENTRY).read_text())
    except (OSError, ValueError):
        return None
    return (
        entry
        if (ShardPosition(entry.first_row, entry.source, entry.generation), entry.rows) == (position, rows)
        else None
    )


def sum_second_moments(root: Path, shards: Sequence[ShardEntry]) -> Tensor:
    """Σ row rowᵀ [m, d, d] float64 over the rows of all shards; what it reads is there during a build only."""
    files = (root / "shards" / entry.name / _MOMENT for entry in shards)
    total = load_file(next(files))["total"].double()
    for file in files:
        total += load_file(file)["total"]
    return total


@dataclass(frozen=True)
class Shard:
    """A published shard, memory-mapped: `blocks` [n, m, w], `scales` [n, .], and the file of its documents."""

    entry: ShardEntry
    shape: RowShape
    blocks: np.ndarray
    scales: np.ndarray
    document_table: pa.Buffer

    @classmethod
    def open(cls, root: Path, entry: ShardEntry, shape: RowShape) -> "Shard":
        """Maps files that were checked (`files.check_files`)."""
        directory, codec = root / "shards" / entry.name, shape.codec
        blocks = map_array(directory / _BLOCKS, codec.block_type, (entry.rows, *shape.block_shape))
        scales = map_array(directory / _SCALES, codec.scale_type, (entry.rows, shape.scale_entries))
        return cls(entry, shape, blocks, scales, map_buffer(directory / DOCUMENT_TABLE_FILE))

    @cached_property
    def documents(self) -> pa.Table:
        """The documents, as `texts` has them."""
        return read_document_table(self.document_table)

    def rows(self, numbers: slice | np.ndarray) -> Tensor:
        """Rows [., m, d] float32. A scan by slices leaves none of the mapped pages in memory."""
        blocks, scales = self.blocks[numbers], self.scales[numbers]
        rows = self.shape.codec.decode(blocks, scales, self.shape.width)
        if isinstance(numbers, slice):
            release_pages(blocks)
            release_pages(scales)
        return rows
