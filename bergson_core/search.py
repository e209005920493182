"""FAISS finds candidates; `attribution` scores them exactly from the stored rows.

Legend: q queries, n rows of a shard, m layers, d numbers a layer, D = m·d.

One FAISS file a shard, so that building needs the memory of one shard and appending touches no old file. It
holds φ = C^-½ row / lengths, as float16, or the bits of sign rows themselves, compared by Hamming distance.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

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
OVERSAMPLING: Final = 4
"""Candidates for each result."""
# Recall@10 of the demo's index (4,800 rows of 2,048 bits): 0.935 at 400 candidates, 0.990 at 1,000, 0.999 at 2,000.
_OVERSAMPLING_BY_BITS, _LEAST_BY_BITS = 20, 2000
_PHI, _BITS = "candidates.faiss", "candidates.bits.faiss"


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


def shard_features(
    shard: Shard, preconditioner: Preconditioner | None, normalize: Normalize
) -> Iterator[tuple[Float[Tensor, "n D"], Float[Tensor, "n c"]]]:
    """`features` of a shard's rows, `_AT_ONCE` at a time."""
    for start in range(0, shard.entry.rows, _AT_ONCE):
        yield features(shard.rows(slice(start, start + _AT_ONCE)), preconditioner, normalize)


def inverse(lengths: Float[Tensor, "n c"]) -> Float[Tensor, "n c"]:
    """1 / lengths, and 0 for 0."""
    return torch.where(lengths > 0, 1 / lengths, 0)


def build_shard_search(
    root: Path, shard: Shard, preconditioner: Preconditioner | None, normalize: Normalize, generation: int
) -> tuple[FileEntry, Float32[np.ndarray, "n c"] | None]:
    """Writes the FAISS index of one shard; returns the lengths of its rows too, None for sign rows."""
    directory = root / "search" / str(generation) / shard.entry.name
    directory.mkdir(parents=True, exist_ok=True)
    if shard.shape.kind == "sign":
        flat = shard.blocks.reshape(shard.entry.rows, -1)
        bits = faiss.IndexBinaryFlat(8 * flat.shape[1])
        bits.add(np.ascontiguousarray(flat))
        faiss.write_index_binary(bits, str(directory / _BITS))
        return file_entry(directory / _BITS, root), None
    dimensions = shard.shape.layers * shard.shape.width
    index = faiss.IndexScalarQuantizer(dimensions, faiss.ScalarQuantizer.QT_fp16, faiss.METRIC_INNER_PRODUCT)
    all_lengths = []
    for phi, lengths in shard_features(shard, preconditioner, normalize):
        index.add(phi.numpy())
        all_lengths.append(lengths.numpy())
    faiss.write_index(index, str(directory / _PHI))
    return file_entry(directory / _PHI, root), np.concatenate(all_lengths)


@dataclass(frozen=True)
class Candidates:
    """The FAISS indexes of all shards of one generation."""

    indexes: Sequence[faiss.Index | faiss.IndexBinary]
    shape: RowShape

    @classmethod
    def open(cls, root: Path, manifest: Manifest) -> "Candidates":
        """Raises `IndexCorrupt` before FAISS sees a file that is not the one that was written."""
        check_contents(root, [entry for entry in manifest.files if entry.path.startswith("search/")])
        indexes, shape = [], RowShape.of(manifest)
        for shard in manifest.shards:
            directory = root / "search" / str(manifest.generation) / shard.name
            if shape.kind == "sign":
                indexes.append(faiss.read_index_binary(str(directory / _BITS), faiss.IO_FLAG_MMAP_IFC))
            else:
                indexes.append(faiss.read_index(str(directory / _PHI), faiss.IO_FLAG_MMAP_IFC))
        return cls(indexes, shape)

    def find(
        self, queries: Float32[Tensor, "q D"], top_k: int, oversampling: int = OVERSAMPLING
    ) -> tuple[Int[np.ndarray, "q k"], Int[np.ndarray, "q k"]]:
        """(shard [q, k], place in the shard [q, k]) of the rows most like each query, best first.

        They are compared by ⟨φ, query⟩, or by Hamming distance where rows are signs, which sees less and finds more
        candidates for it. k is the number of candidates for `top_k` results, `oversampling` for each where φ are
        compared, or of all rows where they are fewer.
        """
        if self.shape.kind == "sign":
            count = max(_LEAST_BY_BITS, _OVERSAMPLING_BY_BITS * top_k)
            blocks, _ = self.shape.codec.encode(queries.reshape(-1, self.shape.layers, self.shape.width))
            asked, sign = blocks.flatten(1).numpy(), -1
        else:
            count, asked, sign = oversampling * top_k, queries.numpy(), 1
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
