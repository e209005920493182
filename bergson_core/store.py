"""Rows on disk: written as a whole shard or not at all, read through memory maps.

Legend: n rows of a shard, m layers, d numbers a layer.

    shards/00000/gradients.bin   [n, m, d] float16, each block divided by its largest magnitude
    shards/00000/scales.bin      [n, m] float32, those magnitudes; 0 for a block of zeros
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
import torch
from jaxtyping import Float, Float16, Float32
from safetensors.torch import load_file, save_file
from torch import Tensor

from bergson_core.documents import Record
from bergson_core.errors import IndexCorrupt
from bergson_core.manifest import FileEntry, ShardEntry
from bergson_core.preconditioners import SecondMoment

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


def encode(
    rows: Float[Tensor, "n m d"],
) -> tuple[Float16[np.ndarray, "n m d"], Float32[np.ndarray, "n m"]]:
    """Blocks [n, m, d] as float16 in [-1, 1] and their scales [n, m] float32: nothing overflows or vanishes."""
    scales = rows.abs().amax(dim=-1)
    unit = rows / scales.clamp_min(torch.finfo(scales.dtype).tiny)[..., None]
    return unit.to(torch.float16).cpu().numpy(), scales.to(torch.float32).cpu().numpy()


def decode(
    blocks: Float16[np.ndarray, "n m d"], scales: Float32[np.ndarray, "n m"]
) -> Float32[Tensor, "n m d"]:
    """The rows [n, m, d] float32 that `encode` was given, to float16's precision."""
    # np.array copies what may be a read-only map; torch widens float16 some twenty times faster than NumPy.
    return torch.from_numpy(np.array(blocks)).float() * torch.from_numpy(np.array(scales))[..., None]


class ShardWriter:
    """Collects the rows of one shard and publishes it by renaming its directory. See `finish`."""

    def __init__(self, root: Path, name: str, rows: int, layers: int, width: int) -> None:
        self._root, self._name, self._rows = root, name, rows
        self._directory = root / "shards" / f".{name}.tmp"
        shutil.rmtree(self._directory, ignore_errors=True)
        self._directory.mkdir(parents=True)
        self._blocks = np.memmap(
            self._directory / "gradients.bin", dtype=np.float16, mode="w+", shape=(rows, layers, width)
        )
        self._scales = np.zeros((rows, layers), dtype=np.float32)
        self._losses = np.zeros(rows)

    def put(self, numbers: np.ndarray, rows: Tensor, losses: Tensor) -> None:
        """Stores `rows` [b, m, d] and their losses [b] at these places of the shard."""
        self._blocks[numbers], self._scales[numbers] = encode(rows)
        self._losses[numbers] = losses.cpu().numpy()

    def finish(
        self,
        records: Sequence[Record],
        labelled: Sequence[int],
        moment: SecondMoment,
        first_row: int,
        fingerprint: str,
    ) -> ShardEntry:
        """Writes the rest, flushes all to disk, and gives the shard its name."""
        directory = self._directory
        self._blocks.flush()
        self._scales.tofile(directory / "scales.bin")
        _write_records(directory / "rows.arrow", records, self._losses, labelled)
        save_file({"total": moment.total.cpu()}, directory / _MOMENT)
        files = tuple(
            file_entry(directory / name).model_copy(update={"path": f"shards/{self._name}/{name}"})
            for name in _KEPT
        )
        entry = ShardEntry(
            name=self._name, first_row=first_row, rows=self._rows, tokens=int(sum(labelled)), files=files
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
        pa.array(losses, pa.float64()),
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
    """A published shard, memory-mapped: `blocks` [n, m, d] float16, `scales` [n, m], `records` an Arrow table."""

    entry: ShardEntry
    blocks: np.ndarray
    scales: np.ndarray
    records: pa.Table

    @classmethod
    def open(cls, root: Path, entry: ShardEntry, layers: int, width: int) -> "Shard":
        """Raises `IndexCorrupt` where a file is missing or not of the size the manifest states."""
        check_sizes(root, entry.files)
        directory, shape = root / "shards" / entry.name, (entry.rows, layers, width)
        blocks = np.memmap(directory / "gradients.bin", dtype=np.float16, mode="r", shape=shape)
        scales = np.memmap(directory / "scales.bin", dtype=np.float32, mode="r", shape=shape[:2])
        with pa.memory_map(str(directory / "rows.arrow")) as source:
            records = pa.ipc.open_file(source).read_all()
        return cls(entry, blocks, scales, records)

    def rows(self, numbers: slice | np.ndarray) -> Tensor:
        """Rows [., m, d] float32."""
        return decode(self.blocks[numbers], self.scales[numbers])


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
    """Raises `IndexCorrupt` where a file's sha256 is not the one stated."""
    for entry in files:
        if _sha256(root / entry.path) != entry.sha256:
            raise IndexCorrupt(f"{root / entry.path} was altered: its sha256 is not the one in the manifest")


def file_entry(path: Path, root: Path | None = None) -> FileEntry:
    """Size and sha256 of a file, named below `root`."""
    name = str(path.relative_to(root)) if root else path.name
    return FileEntry(path=name, bytes=path.stat().st_size, sha256=_sha256(path))


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


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
