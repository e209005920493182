"""φ, what rows are compared by, and the FAISS files that `candidates` looks into.

Legend: n rows of a shard, m layers, d numbers a layer, D = m·d.

One FAISS file a shard, so that building needs the memory of one shard and appending touches no old file. It
holds φ = C^-½ row / lengths, as float16 or in one bit a number. Sign rows have none: their own bits are compared.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Final

import faiss
import numpy as np
import torch
from jaxtyping import Float, Float32
from torch import Tensor

from bergson_core.gradients.preconditioner import Preconditioner
from bergson_core.schemas.build import Normalize, SearchKind
from bergson_core.shards.shard import Shard
from bergson_core.storage.integrity import file_entry
from bergson_core.storage.layout import search_path
from bergson_core.storage.manifest import FileEntry

_AT_ONCE: Final = 1024
QUERY_BITS: Final = 4
"""Of each number of a query, where rows have one: as the paper has it. Eight found no more of the best rows of 250,000
and took half as long again."""


def score_features(
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
    return (phi * reciprocal_or_zero(lengths)[..., None]).flatten(1), lengths


def shard_features(
    shard: Shard, preconditioner: Preconditioner | None, normalize: Normalize
) -> Iterator[tuple[Float[Tensor, "n D"], Float[Tensor, "n c"]]]:
    """`features` of a shard's rows, `_AT_ONCE` at a time."""
    for start in range(0, shard.entry.rows, _AT_ONCE):
        yield score_features(shard.rows(slice(start, start + _AT_ONCE)), preconditioner, normalize)


def reciprocal_or_zero(lengths: Float[Tensor, "n c"]) -> Float[Tensor, "n c"]:
    """1 / lengths, and 0 for 0."""
    return torch.where(lengths > 0, 1 / lengths, 0)


def build_shard_search(
    root: Path,
    shard: Shard,
    preconditioner: Preconditioner | None,
    normalize: Normalize,
    kind: SearchKind,
) -> tuple[FileEntry, Float32[np.ndarray, "n c"]]:
    """Writes the FAISS index of one shard; returns the lengths of its rows too."""
    path = root / search_path(kind, shard.entry.name)
    path.parent.mkdir(parents=True, exist_ok=True)
    dimensions = shard.shape.layers * shard.shape.width
    index = _empty(kind, dimensions)
    all_lengths = []
    for phi, lengths in shard_features(shard, preconditioner, normalize):
        index.add(phi.numpy())
        all_lengths.append(lengths.numpy())
    faiss.write_index(index, str(path))
    return file_entry(path, root), np.concatenate(all_lengths)


def _empty(kind: SearchKind, dimensions: int) -> faiss.Index:
    """An index for φ. RaBitQ (Gao and Long, arXiv 2405.12497) gets no centre: φ lie around the origin."""
    if kind == "float16":
        return faiss.IndexScalarQuantizer(
            dimensions, faiss.ScalarQuantizer.QT_fp16, faiss.METRIC_INNER_PRODUCT
        )
    index = faiss.IndexRaBitQ(dimensions, faiss.METRIC_INNER_PRODUCT)
    index.train(np.zeros((1, dimensions), dtype=np.float32))
    index.qb = QUERY_BITS
    return index
