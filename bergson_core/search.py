"""FAISS finds candidates; `attribution` scores them exactly from the stored rows.

Legend: q queries, n rows of a shard, m layers, d numbers a layer, D = m·d.

One FAISS file a shard, so that building needs the memory of one shard and appending touches no old file. It
holds φ = C^-½ row / lengths, as float16, or the bits of sign rows themselves, compared by Hamming distance.
`lengths.bin` [n, c] float32 is what a score is divided by when it is recomputed from the raw row: c is m where each
layer's block is scaled by itself, else 1.
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
from bergson_core.store import RowShape, Shard, check_contents, file_entry

_AT_ONCE = 1024
_OVERSAMPLING = 4
# Recall@10 of the demo's index (4,800 rows of 2,048 bits): 0.935 at 400 candidates, 0.990 at 1,000, 0.999 at 2,000.
_OVERSAMPLING_BY_BITS, _LEAST_BY_BITS = 20, 2000
_PHI, _LENGTHS, _BITS = "candidates.faiss", "lengths.bin", "candidates.bits.faiss"


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
    if shard.shape.kind == "sign":
        flat = shard.blocks.reshape(shard.entry.rows, -1)
        bits = faiss.IndexBinaryFlat(8 * flat.shape[1])
        bits.add(np.ascontiguousarray(flat))
        faiss.write_index_binary(bits, str(directory / _BITS))
        return (file_entry(directory / _BITS, root),)
    dimensions = shard.shape.layers * shard.shape.width
    index = faiss.IndexScalarQuantizer(dimensions, faiss.ScalarQuantizer.QT_fp16, faiss.METRIC_INNER_PRODUCT)
    all_lengths = []
    for start in range(0, shard.entry.rows, _AT_ONCE):
        phi, lengths = features(shard.rows(slice(start, start + _AT_ONCE)), preconditioner, normalize)
        index.add(phi.numpy())
        all_lengths.append(lengths.numpy())
    np.concatenate(all_lengths).astype(np.float32).tofile(directory / _LENGTHS)
    faiss.write_index(index, str(directory / _PHI))
    return tuple(file_entry(directory / name, root) for name in (_PHI, _LENGTHS))


@dataclass(frozen=True)
class Candidates:
    """The FAISS indexes of all shards of one generation, and the lengths [n, c] of their rows; 1 for sign rows."""

    indexes: Sequence[faiss.Index | faiss.IndexBinary]
    lengths: Sequence[np.ndarray]
    shape: RowShape

    @classmethod
    def open(cls, root: Path, manifest: Manifest) -> "Candidates":
        """Raises `IndexCorrupt` before FAISS sees a file that is not the one that was written."""
        check_contents(root, [entry for entry in manifest.files if entry.path.startswith("search/")])
        indexes, lengths, shape = [], [], RowShape.of(manifest)
        for shard in manifest.shards:
            directory = root / "search" / str(manifest.generation) / shard.name
            if shape.kind == "sign":
                indexes.append(faiss.read_index_binary(str(directory / _BITS), faiss.IO_FLAG_MMAP_IFC))
                lengths.append(np.broadcast_to(np.float32(1), (shard.rows, 1)))
            else:
                indexes.append(faiss.read_index(str(directory / _PHI), faiss.IO_FLAG_MMAP_IFC))
                flat = np.memmap(directory / _LENGTHS, dtype=np.float32, mode="r")
                lengths.append(flat.reshape(shard.rows, -1))
        return cls(indexes, lengths, shape)

    def find(
        self, queries: Float32[Tensor, "q D"], top_k: int
    ) -> tuple[Int[np.ndarray, "q k"], Int[np.ndarray, "q k"]]:
        """(shard [q, k], place in the shard [q, k]) of the rows most like each query, best first.

        They are compared by ⟨φ, query⟩, or by Hamming distance where rows are signs, which sees less and finds more
        candidates for it. k is the number of candidates for `top_k` results, or of all rows where they are fewer.
        """
        if self.shape.kind == "sign":
            count = max(_LEAST_BY_BITS, _OVERSAMPLING_BY_BITS * top_k)
            blocks, _ = self.shape.codec.encode(queries.reshape(-1, self.shape.layers, self.shape.width))
            asked, sign = np.ascontiguousarray(blocks.reshape(len(queries), -1)), -1
        else:
            count, asked, sign = _OVERSAMPLING * top_k, queries.numpy(), 1
        scores, shards, places = [], [], []
        for number, index in enumerate(self.indexes):
            found_scores, found = index.search(asked, min(count, index.ntotal))
            scores.append(sign * found_scores)
            places.append(found)
            shards.append(np.full_like(found, number))
        order = np.argsort(-np.concatenate(scores, axis=1), axis=1, kind="stable")[:, :count]
        return (
            np.take_along_axis(np.concatenate(shards, axis=1), order, axis=1),
            np.take_along_axis(np.concatenate(places, axis=1), order, axis=1),
        )
