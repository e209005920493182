"""The FAISS file of a shard, in which `candidates` looks for rows like a query.

A shard has a FAISS file of its own, so that building takes the memory of one shard, and appending changes no old file.
The file holds φ (`features`) of the shard's rows, as float16 or in one bit per number. Sign rows have no such file:
their own bits are compared.

Legend: n rows of a shard; c is the number of lengths that a row has (`features`).
"""

from pathlib import Path
from typing import Final

import faiss
import numpy as np
from jaxtyping import Float32

from bergson_core.gradients.preconditioner import Preconditioner
from bergson_core.schemas.build import Normalize, SearchKind
from bergson_core.search.features import iter_shard_features
from bergson_core.shards.shard import Shard
from bergson_core.storage.integrity import make_file_entry
from bergson_core.storage.layout import search_path
from bergson_core.storage.manifest import FileEntry

QUERY_BITS: Final = 4
"""Bits for each number of a query where rows have one bit, as in the RaBitQ paper. Eight bits found no more of the best
rows of 250,000 and took half as long again."""


def build_faiss_file(
    root: Path,
    shard: Shard,
    preconditioner: Preconditioner | None,
    normalize: Normalize,
    kind: SearchKind,
    checkpoints: int = 1,
) -> tuple[FileEntry, Float32[np.ndarray, "n c"]]:
    """Writes the FAISS file of one shard, and returns the lengths of the shard's rows too.

    Args:
        root: Directory of the index.
        shard: The shard whose φ are written.
        preconditioner: C^-½ of the default profile, or None without one.
        normalize: How φ is scaled (`features.compute_features`).
        kind: `float16` or `rabitq`.
        checkpoints: Number of checkpoints that a row has parts of.

    Returns:
        (entry of the file for the manifest, lengths [n, c] of the rows).
    """
    path = root / search_path(kind, shard.entry.name)
    path.parent.mkdir(parents=True, exist_ok=True)
    dimensions = shard.shape.modules * shard.shape.width
    index = _make_empty_index(kind, dimensions)
    length_chunks = []
    for phi, lengths in iter_shard_features(shard, preconditioner, normalize, checkpoints):
        index.add(phi.numpy())
        length_chunks.append(lengths.numpy())
    faiss.write_index(index, str(path))
    return make_file_entry(path, root), np.concatenate(length_chunks)


def _make_empty_index(kind: SearchKind, dimensions: int) -> faiss.Index:
    """Returns an empty index for φ of that many numbers.

    RaBitQ (Gao and Long, arXiv 2405.12497) is given no centre, because the φ lie around the origin.
    """
    if kind == "float16":
        return faiss.IndexScalarQuantizer(
            dimensions, faiss.ScalarQuantizer.QT_fp16, faiss.METRIC_INNER_PRODUCT
        )
    index = faiss.IndexRaBitQ(dimensions, faiss.METRIC_INNER_PRODUCT)
    index.train(np.zeros((1, dimensions), dtype=np.float32))
    index.qb = QUERY_BITS
    return index
