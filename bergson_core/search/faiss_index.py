"""φ, what rows are compared by, and the FAISS files that `candidates` looks into.

Legend: n rows of a shard, m layers, d numbers a layer, D = m·d.

One FAISS file a shard, so that building needs the memory of one shard and appending touches no old file. It
holds φ = C^-½ row / lengths, as float16 or in one bit a number. Sign rows have none: their own bits are compared.
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
from bergson_core.storage.integrity import file_entry
from bergson_core.storage.layout import search_path
from bergson_core.storage.manifest import FileEntry

QUERY_BITS: Final = 4
"""Of each number of a query, where rows have one: as the paper has it. Eight found no more of the best rows of 250,000
and took half as long again."""


def build_faiss_file(
    root: Path,
    shard: Shard,
    preconditioner: Preconditioner | None,
    normalize: Normalize,
    kind: SearchKind,
) -> tuple[FileEntry, Float32[np.ndarray, "n c"]]:
    """Writes the FAISS index of one shard; returns the lengths of its rows too."""
    path = root / search_path(kind, shard.entry.name)
    path.parent.mkdir(parents=True, exist_ok=True)
    dimensions = shard.shape.modules * shard.shape.width
    index = _empty(kind, dimensions)
    all_lengths = []
    for phi, lengths in iter_shard_features(shard, preconditioner, normalize):
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
