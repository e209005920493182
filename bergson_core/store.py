"""Rows on disk: written as a whole shard or not at all, read through memory maps.

Legend: n rows of a shard, m layers, d numbers a layer, w entries that are kept of them.

    shards/00000/gradients.bin   blocks [n, m, w] of a codec (`codecs`)
    shards/00000/scales.bin      its scales [n, .]
    shards/00000/rows.arrow      Arrow file: id, prompt, completion, metadata (JSON), loss, n_tokens

A shard is made in a directory beside its place, flushed to disk, and renamed. `rows.arrow` and not Parquet,
since a query reads ten rows at random places: a memory-mapped Arrow file does that without decoding a row group.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
from jaxtyping import Float32
from safetensors.torch import load_file, save_file
from torch import Tensor

from bergson_core.codecs import CODECS, Codec
from bergson_core.documents import Record
from bergson_core.errors import IndexCorrupt
from bergson_core.manifest import FileEntry, Manifest, ShardEntry
from bergson_core.preconditioners import SecondMoment
from bergson_core.specs import RowKind

_ROWS = pa.schema(
    [
        ("id", pa.string()),
        ("prompt", pa.string()),
        ("completion", pa.string()),
        ("metadata", pa.string()),
        ("loss", pa.float64()),
        ("n_tokens", pa.int32()),
    ]
)
_KEPT = ("gradients.bin", "scales.bin", "rows.arrow")
_MOMENT, _ENTRY = "second_moment.safetensors", "shard.json"


@dataclass(frozen=True)
class RowShape:
    """What a row consists of: `layers` blocks of `width` numbers, kept as `kind`."""

    kind: RowKind
    layers: int
    width: int

    @classmethod
    def of(cls, manifest: Manifest) -> "RowShape":
        layers = len(manifest.modules)
        return cls(manifest.spec.gradients.rows, layers, manifest.dimensions // layers)

    @property
    def codec(self) -> Codec:
        return CODECS[self.kind]

    @property
    def blocks(self) -> tuple[int, int]:
        """(m, w)."""
        return self.layers, self.codec.entries(self.width)

    @property
    def scales(self) -> int:
        return self.codec.scales(self.layers)

    @property
    def row_bytes(self) -> int:
        return self.codec.row_bytes(self.layers, self.width)


class ShardWriter:
    """Collects the rows of one shard and publishes it by renaming its directory. See `finish`.

    A loss that is NaN marks a row that was skipped; it is null in `rows.arrow`.
    """

    def __init__(self, root: Path, name: str, rows: int, shape: RowShape) -> None:
        self._root, self._name, self._rows, self._codec = root, name, rows, shape.codec
        self._directory = root / "shards" / f".{name}.tmp"
        shutil.rmtree(self._directory, ignore_errors=True)
        self._directory.mkdir(parents=True)
        self._blocks = np.memmap(
            self._directory / "gradients.bin", self._codec.block_type, "w+", shape=(rows, *shape.blocks)
        )
        self._scales = np.zeros((rows, shape.scales), dtype=self._codec.scale_type)
        self._losses = np.zeros(rows)

    def put(self, numbers: np.ndarray, blocks: np.ndarray, scales: np.ndarray, losses: np.ndarray) -> None:
        """Stores what the codec made of b rows, and their losses [b], at these places of the shard."""
        self._blocks[numbers], self._scales[numbers], self._losses[numbers] = blocks, scales, losses

    @property
    def skipped(self) -> np.ndarray:
        """Which rows [n] were skipped."""
        return np.isnan(self._losses)

    def finish(
        self,
        records: Sequence[Record],
        labelled: Sequence[int],
        moment: SecondMoment | None,
        first_row: int,
        fingerprint: str,
    ) -> ShardEntry:
        """Writes the rest, flushes all to disk, and gives the shard its name."""
        directory = self._directory
        self._blocks.flush()
        self._scales.tofile(directory / "scales.bin")
        _write_records(directory / "rows.arrow", records, self._losses, labelled)
        if moment is not None:
            save_file({"total": moment.total.cpu()}, directory / _MOMENT)
        files = tuple(
            file_entry(directory / name).model_copy(update={"path": f"shards/{self._name}/{name}"})
            for name in _KEPT
        )
        entry = ShardEntry(
            name=self._name,
            first_row=first_row,
            rows=self._rows,
            tokens=int(sum(labelled)),
            skipped=int(self.skipped.sum()),
            files=files,
        )
        stamp = {"fingerprint": fingerprint, "entry": entry.model_dump()}
        (directory / _ENTRY).write_text(json.dumps(stamp))
        for path in directory.iterdir():
            _sync(path)
        _sync(directory)
        place = self._root / "shards" / self._name
        shutil.rmtree(place, ignore_errors=True)
        directory.rename(place)
        _sync(place.parent)
        return entry


def _write_records(
    path: Path, records: Sequence[Record], losses: np.ndarray, labelled: Sequence[int]
) -> None:
    columns = [
        pa.array([record.id for record in records], pa.string()),
        pa.array([record.prompt for record in records], pa.string()),
        pa.array([record.completion for record in records], pa.string()),
        pa.array([json.dumps(record.metadata, default=str) for record in records], pa.string()),
        pa.array(losses, pa.float64(), from_pandas=True),
        pa.array(labelled, pa.int32()),
    ]
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_file(file, _ROWS) as writer:
        writer.write_batch(pa.record_batch(columns, schema=_ROWS))


def finished_shard(root: Path, name: str, fingerprint: str) -> ShardEntry | None:
    """The entry of a shard that an earlier build of the same fingerprint has finished."""
    try:
        stamp = json.loads((root / "shards" / name / _ENTRY).read_text())
    except (OSError, ValueError):
        return None
    return ShardEntry.model_validate(stamp["entry"]) if stamp["fingerprint"] == fingerprint else None


def total_moment(root: Path, shards: Sequence[ShardEntry]) -> Tensor:
    """Σ row rowᵀ [m, d, d] float64 over the rows of all shards; what it reads is there during a build only."""
    files = (root / "shards" / entry.name / _MOMENT for entry in shards)
    total = load_file(next(files))["total"].double()
    for file in files:
        total += load_file(file)["total"]
    return total


def drop_build_files(root: Path, shards: Iterable[ShardEntry]) -> None:
    """Removes what only an unfinished build needs."""
    for entry in shards:
        for name in (_MOMENT, _ENTRY):
            (root / "shards" / entry.name / name).unlink(missing_ok=True)


@dataclass(frozen=True)
class Shard:
    """A published shard, memory-mapped: `blocks` [n, m, w], `scales` [n, .], `records` an Arrow table."""

    entry: ShardEntry
    shape: RowShape
    blocks: np.ndarray
    scales: np.ndarray
    records: pa.Table

    @classmethod
    def open(cls, root: Path, entry: ShardEntry, shape: RowShape) -> "Shard":
        """Raises `IndexCorrupt` where a file is missing or not of the size the manifest states."""
        check_sizes(root, entry.files)
        directory, codec = root / "shards" / entry.name, shape.codec
        blocks = np.memmap(
            directory / "gradients.bin", codec.block_type, "r", shape=(entry.rows, *shape.blocks)
        )
        scales = np.memmap(directory / "scales.bin", codec.scale_type, "r", shape=(entry.rows, shape.scales))
        with pa.memory_map(str(directory / "rows.arrow")) as source:
            records = pa.ipc.open_file(source).read_all()
        return cls(entry, shape, blocks, scales, records)

    def rows(self, numbers: slice | np.ndarray) -> Tensor:
        """Rows [., m, d] float32."""
        return self.shape.codec.decode(self.blocks[numbers], self.scales[numbers], self.shape.width)

    def products(self, numbers: np.ndarray, weights: Float32[Tensor, "m d"]) -> Float32[Tensor, "k m"]:
        """Inner product of each block of these rows with its layer's weights."""
        return self.shape.codec.products(self.blocks[numbers], self.scales[numbers], weights)


def check_sizes(root: Path, files: Iterable[FileEntry]) -> None:
    """Raises `IndexCorrupt` where a file is missing or has another size than stated."""
    for entry in files:
        path = root / entry.path
        size = path.stat().st_size if path.is_file() else None
        if size != entry.bytes:
            raise IndexCorrupt(
                f"{path} has {'no file' if size is None else f'{size} bytes'}, the manifest says {entry.bytes} bytes; "
                "restore it from a copy or build the index again"
            )


def check_contents(root: Path, files: Iterable[FileEntry]) -> None:
    """Raises `IndexCorrupt` where a file is missing, or its sha256 is not the one stated."""
    files = list(files)
    check_sizes(root, files)
    for entry in files:
        if file_sha256(root / entry.path) != entry.sha256:
            raise IndexCorrupt(f"{root / entry.path} was altered: its sha256 is not the one in the manifest")


def file_entry(path: Path, root: Path | None = None) -> FileEntry:
    """Size and sha256 of a file, named below `root`."""
    name = str(path.relative_to(root)) if root else path.name
    return FileEntry(path=name, bytes=path.stat().st_size, sha256=file_sha256(path))


def sync_files(root: Path, files: Iterable[FileEntry]) -> None:
    """Flushes these files and their directories to disk."""
    paths = [root / entry.path for entry in files]
    for path in (*paths, *{path.parent for path in paths}):
        _sync(path)


def write_durably(path: Path, content: bytes) -> None:
    """Replaces a file as one step: a reader sees the old or the new content, also after a power cut."""
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_bytes(content)
    _sync(temporary)
    temporary.rename(path)
    _sync(path.parent)


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def file_sha256(path: Path) -> str:
    """sha256 of a file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
