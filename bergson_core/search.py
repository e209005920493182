"""FAISS finds candidates; `attribution` scores them exactly from the stored rows.

Legend: q queries, n rows of a shard, m layers, d numbers a layer, D = m·d.

One FAISS file a shard, so that building needs the memory of one shard and appending touches no old file. It
holds φ = C^-½ row / lengths, as float16; `lengths.bin` [n, c] float32 is what a score is divided by when it is
recomputed from the raw row: c is m where each layer's block is scaled by itself, else 1.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import faiss
import numpy as np
import torch
from jaxtyping import Float, Float32, Int
from torch import Tensor

from bergson_core.manifest import FileEntry, Manifest
from bergson_core.preconditioners import Preconditioner
from bergson_core.specs import Normalize
from bergson_core.store import Shard, check_contents, file_entry

_AT_ONCE = 1024


def features(
    rows: Float[Tensor, "n m d"], preconditioner: Preconditioner | None, normalize: Normalize
) -> tuple[Float[Tensor, "n D"], Float[Tensor, "n c"]]:
    """(φ [n, D], lengths [n, c]) of rows [n, m, d]: φ is C^-½ row over its lengths, 0 where they are.

    `none`: lengths are 1. `row`: φ is of unit length. `block`: each of the m blocks is of length 1/√m, so that an
    inner product of two φ is the mean of their layers' cosines.
    """
    phi = preconditioner.apply(rows) if preconditioner else rows
    if normalize == "block":
        lengths = torch.linalg.vector_norm(phi, dim=2) * phi.shape[1] ** 0.5
    elif normalize == "row":
        lengths = torch.linalg.vector_norm(phi, dim=(1, 2))[:, None]
    else:
        lengths = phi.new_ones(len(phi), 1)
    return (phi * inverse(lengths)[..., None]).flatten(1), lengths


def inverse(lengths: Float[Tensor, "n c"]) -> Float[Tensor, "n c"]:
    """1 / lengths, and 0 for 0."""
    return torch.where(lengths > 0, 1 / lengths, 0)


def build_shard_search(
    root: Path, shard: Shard, preconditioner: Preconditioner | None, normalize: Normalize, generation: int
) -> tuple[FileEntry, ...]:
    """Writes the FAISS index and the lengths of one shard."""
    directory = root / "search" / str(generation) / shard.entry.name
    directory.mkdir(parents=True, exist_ok=True)
    index = faiss.IndexScalarQuantizer(
        int(np.prod(shard.blocks.shape[1:])), faiss.ScalarQuantizer.QT_fp16, faiss.METRIC_INNER_PRODUCT
    )
    all_lengths = []
    for start in range(0, shard.entry.rows, _AT_ONCE):
        phi, lengths = features(shard.rows(slice(start, start + _AT_ONCE)), preconditioner, normalize)
        index.add(phi.numpy())
        all_lengths.append(lengths.numpy())
    np.concatenate(all_lengths).astype(np.float32).tofile(directory / "lengths.bin")
    faiss.write_index(index, str(directory / "candidates.faiss"))
    return tuple(file_entry(directory / name, root) for name in ("candidates.faiss", "lengths.bin"))


@dataclass(frozen=True)
class Candidates:
    """The FAISS indexes and lengths [n, c] of all shards of one generation."""

    indexes: Sequence[faiss.Index]
    lengths: Sequence[np.ndarray]
    first_rows: Sequence[int]

    @classmethod
    def open(cls, root: Path, manifest: Manifest) -> "Candidates":
        """Raises `IndexCorrupt` before FAISS sees a file that is not the one that was written."""
        check_contents(root, [entry for entry in manifest.files if entry.path.startswith("search/")])
        indexes, lengths = [], []
        for shard in manifest.shards:
            directory = root / "search" / str(manifest.generation) / shard.name
            indexes.append(faiss.read_index(str(directory / "candidates.faiss"), faiss.IO_FLAG_MMAP_IFC))
            flat = np.memmap(directory / "lengths.bin", dtype=np.float32, mode="r")
            lengths.append(flat.reshape(shard.rows, -1))
        return cls(indexes, lengths, [shard.first_row for shard in manifest.shards])

    def find(
        self, queries: Float32[np.ndarray, "q D"], count: int
    ) -> tuple[Int[np.ndarray, "q k"], Int[np.ndarray, "q k"]]:
        """(shard [q, k], place in the shard [q, k]) of the rows with the largest ⟨φ, query⟩, best first.

        `queries` [q, D] float32; k is the smaller of `count` and the number of rows.
        """
        scores, shards, places = [], [], []
        for number, index in enumerate(self.indexes):
            found_scores, found = index.search(queries, min(count, index.ntotal))
            scores.append(found_scores)
            places.append(found)
            shards.append(np.full_like(found, number))
        order = np.argsort(-np.concatenate(scores, axis=1), axis=1, kind="stable")[:, :count]
        return (
            np.take_along_axis(np.concatenate(shards, axis=1), order, axis=1),
            np.take_along_axis(np.concatenate(places, axis=1), order, axis=1),
        )
