"""Writes shards: a whole shard or none of it.

Legend: n rows of a shard, b rows that are stored at once, m modules, d numbers per module, w entries that are stored of
them.

A shard is written to a directory of its own, `shards/.<name>.<random>.tmp`, flushed to disk, and renamed to
`shards/<name>` by the process that holds the index's lock. A process that is taken for dead may therefore go on writing
and do no harm. The name of a shard that was published is never used again.

Until the index is published, `shards/<name>/shard.json` lists the files of a finished shard with their hashes, and ends
with its own. A run that goes on with the shard can therefore tell whether any of its files was damaged meanwhile.
"""

import logging
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final
from uuid import uuid4

import numpy as np
import pyarrow as pa
from jaxtyping import Float64
from safetensors.torch import load_file, save_file
from torch import Tensor

from bergson_core.gradients.preconditioner import SecondMoment
from bergson_core.schemas.base import ResultModel
from bergson_core.schemas.record import Record
from bergson_core.shards.shard import BLOCKS_FILE, SCALES_FILE, RowShape
from bergson_core.storage.document_table import (
    DOCUMENT_TABLE_FILE,
    make_document_table,
    read_metadata,
    write_document_table,
)
from bergson_core.storage.integrity import make_file_entry
from bergson_core.storage.manifest import FileEntry, ShardEntry
from bergson_core.storage.metadata_types import column_types
from bergson_core.utils.atomic_files import fsync_path
from bergson_core.utils.background import stop_if_abandoned
from bergson_core.utils.sealed_json import seal, unseal

logger = logging.getLogger(__name__)

_MOMENT_FILE: Final = "second_moment.safetensors"
_ENTRY_FILE: Final = "shard.json"


@dataclass(frozen=True)
class ShardPosition:
    """Where in an index a shard belongs, and what it was built from.

    Attributes:
        first_row: The number of its first row in the index.
        source: The fingerprint of what its rows were built from.
        generation: The first generation of the index that has the shard.
    """

    first_row: int
    source: str
    generation: int = 1


class FinishedShard(ResultModel):
    """A shard that an interrupted run has finished, as `shard.json` describes it."""

    entry: ShardEntry
    """The shard's entry of the manifest."""
    moment: FileEntry | None
    """The file with the second moment of its rows, which exists during a build only."""

    @property
    def files(self) -> tuple[FileEntry, ...]:
        """All files of the shard, but for `shard.json`."""
        return self.entry.files if self.moment is None else (*self.entry.files, self.moment)


@dataclass(frozen=True)
class WrittenShard:
    """A shard that lies whole on disk in `directory`, and becomes part of the index by `accept`."""

    entry: ShardEntry
    directory: Path

    def accept(self) -> ShardEntry:
        """Renames the directory to the shard's name, and removes another shard that has this name."""
        target = self.directory.with_name(self.entry.name)
        shutil.rmtree(target, ignore_errors=True)
        self.directory.rename(target)
        fsync_path(target.parent)
        return self.entry


class ShardWriter:
    """Holds the rows of one shard in memory until `write` writes them all.

    A loss of NaN marks a row that was skipped; the document table has null in its place.

    Args:
        root: The directory of the index.
        name: The name of the shard.
        rows: n, the number of its rows.
        shape: The shape of the rows.
    """

    def __init__(self, root: Path, name: str, rows: int, shape: RowShape) -> None:
        self._root, self._name, codec = root, name, shape.codec
        self._blocks = np.zeros((rows, *shape.block_shape), dtype=codec.block_dtype)
        self._scales = np.zeros((rows, shape.scale_entries), dtype=codec.scale_dtype)
        self._losses = np.zeros(rows)

    def put(self, numbers: np.ndarray, blocks: np.ndarray, scales: np.ndarray, losses: np.ndarray) -> None:
        """Stores b encoded rows.

        Args:
            numbers: The row numbers [b] within the shard.
            blocks: The blocks [b, m, w] of the codec.
            scales: Their scales [b, .].
            losses: The losses [b] of the documents, in nats.
        """
        self._blocks[numbers], self._scales[numbers], self._losses[numbers] = blocks, scales, losses

    @property
    def skipped(self) -> np.ndarray:
        """For each row [n], whether it was skipped."""
        return np.isnan(self._losses)

    def write(
        self,
        records: Sequence[Record],
        labelled: Sequence[int],
        moment: SecondMoment | None,
        position: ShardPosition,
    ) -> WrittenShard:
        """Writes the shard to disk.

        Args:
            records: The n documents.
            labelled: The number of labelled tokens of each document.
            moment: The second moment of the rows, where the index will have a preconditioner.
            position: Where in the index the shard belongs.
        """
        documents = make_document_table(records, self._losses, labelled)
        return write_shard(self._root, self._name, self._blocks, self._scales, documents, position, moment)


def write_shard(
    root: Path,
    name: str,
    blocks: np.ndarray,
    scales: np.ndarray,
    documents: pa.Table,
    position: ShardPosition,
    moment: SecondMoment | None = None,
) -> WrittenShard:
    """Writes all files of a shard and flushes them to disk.

    Args:
        root: The directory of the index.
        name: The name of the shard.
        blocks: The stored blocks [n, m, w].
        scales: Their scales [n, .].
        documents: The document table of n rows.
        position: Where in the index the shard belongs.
        moment: The second moment of the rows, where the index will have a preconditioner.

    Returns:
        The shard, in a directory that no index knows before `WrittenShard.accept`.
    """
    directory = root / "shards" / f".{name}.{uuid4().hex}.tmp"
    directory.mkdir(parents=True)
    try:
        write_array(directory / BLOCKS_FILE, blocks)
        write_array(directory / SCALES_FILE, scales)
        write_document_table(directory / DOCUMENT_TABLE_FILE, documents)
        moment_entry = None
        if moment is not None:
            save_file({"total": moment.total.cpu()}, directory / _MOMENT_FILE)
            moment_entry = _make_file_entry(directory, name, _MOMENT_FILE)
        entry = _make_entry(directory, name, documents, position)
        finished = FinishedShard(entry=entry, moment=moment_entry)
        (directory / _ENTRY_FILE).write_bytes(seal(finished.model_dump_json(indent=1)))
        for path in directory.iterdir():
            fsync_path(path)
    except BaseException:
        shutil.rmtree(directory, ignore_errors=True)
        raise
    fsync_path(directory)
    return WrittenShard(entry, directory)


def _make_entry(directory: Path, name: str, documents: pa.Table, position: ShardPosition) -> ShardEntry:
    """Returns the manifest's entry of the shard whose files lie in `directory`."""
    files = tuple(
        _make_file_entry(directory, name, file) for file in (BLOCKS_FILE, SCALES_FILE, DOCUMENT_TABLE_FILE)
    )
    return ShardEntry(
        name=name,
        first_row=position.first_row,
        rows=len(documents),
        tokens=int(sum(documents["n_tokens"].to_pylist())),
        skipped=documents["loss"].null_count,
        generation=position.generation,
        source=position.source,
        metadata_types=column_types(read_metadata(documents)),
        files=files,
    )


def _make_file_entry(directory: Path, name: str, file: str) -> FileEntry:
    """Returns the entry that a file in the temporary `directory` of the shard `name` has when it is accepted."""
    return make_file_entry(directory / file).model_copy(update={"path": f"shards/{name}/{file}"})


def write_array(path: Path, array: np.ndarray) -> None:
    """Writes the numbers of an array without a header; unlike `ndarray.tofile`, an error names its reason."""
    with path.open("wb") as file:
        file.write(np.ascontiguousarray(array).data.cast("B") if array.size else b"")


def find_finished_shard(root: Path, name: str, position: ShardPosition, rows: int) -> FinishedShard | None:
    """Returns a shard that an interrupted run has finished, or None. Its files are not read.

    Args:
        root: The directory of the index.
        name: The name of the shard.
        position: Where the shard has to belong: one from another source is not taken.
        rows: How many rows the shard has to have.
    """
    directory = root / "shards" / name
    if not directory.exists():
        return None
    try:
        sealed = (directory / _ENTRY_FILE).read_bytes()
        content = unseal(sealed)
        if content == sealed:
            raise ValueError("it was altered: its sha256 is missing or is not that of its content")
        shard = FinishedShard.model_validate_json(content)
    except (OSError, ValueError) as error:
        logger.warning(
            "%s is written again, because its %s cannot be used: %s", directory, _ENTRY_FILE, error
        )
        return None
    entry = shard.entry
    same_position = ShardPosition(entry.first_row, entry.source, entry.generation) == position
    return shard if same_position and entry.name == name and entry.rows == rows else None


def remove_unaccepted_shards(root: Path) -> None:
    """Removes the directories of shards that were never accepted into the index in directory `root`."""
    for path in (root / "shards").glob(".*.tmp"):
        shutil.rmtree(path, ignore_errors=True)


def sum_second_moments(root: Path, shards: Sequence[ShardEntry]) -> Float64[Tensor, "m d d"]:
    """Returns Σ row rowᵀ [m, d, d] over the rows of all `shards`.

    The files that are read exist during a build only.
    """
    files = (root / "shards" / entry.name / _MOMENT_FILE for entry in shards)
    total = load_file(next(files))["total"].double()
    for file in files:
        stop_if_abandoned()
        total += load_file(file)["total"]
    return total
