"""The cosines of rows of an index, and what they say of documents that are nearly the same to the model.

Legend: k documents, m modules, d numbers per module, D = m·d.
"""

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from bergson_core.attribution.document_selection import RowLocation
from bergson_core.search.features import compute_features
from bergson_core.search.searcher import Searcher
from bergson_core.storage.manifest import Manifest


def row_cosines(
    searcher: Searcher, manifest: Manifest, locations: Sequence[RowLocation], profile: str
) -> Float[np.ndarray, "k k"]:
    """Returns the cosine of each pair of rows, as the index compares rows.

    It is the cosine of whole rows, or with `normalize="block"` the mean of the modules' cosines. For sign rows it is
    estimated from the share of signs that agree. Memory is that of k rows and k² cosines.

    Args:
        searcher: The shards of the index.
        manifest: Manifest of the index.
        locations: Where the k rows are.
        profile: Profile to compare under.
    """
    opened, has_sign_rows = searcher.profiles[profile], manifest.spec.gradients.rows == "sign"
    normalize = "block" if opened.normalize == "block" and not has_sign_rows else "row"
    phi = torch.zeros(len(locations), manifest.dimensions)
    shard_numbers, offsets = np.array(locations, dtype=np.int64).reshape(-1, 2).T
    for shard_number in np.unique(shard_numbers):
        in_shard = shard_numbers == shard_number
        rows = searcher.shards[shard_number].rows(offsets[in_shard])
        phi[torch.from_numpy(in_shard)], _ = compute_features(
            rows, opened.weight_preconditioner, normalize, opened.checkpoints
        )
    products = phi @ phi.mT
    return (cosines_from_sign_products(products) if has_sign_rows else products).numpy()


def cosines_from_sign_products(products: Float[Tensor, "k k"]) -> Float[Tensor, "k k"]:
    """Returns the cosines that the mean products of signs stand for.

    For random projections the mean product is 1 - 2θ/π, with θ the angle between the rows.

    Source: Charikar, STOC 2002.
    """
    return torch.sin(products * torch.pi / 2)


def label_components(pairs: Bool[np.ndarray, "k k"]) -> Int[np.ndarray, " k"]:
    """Returns for each document the first one that a chain of pairs leads to: the label of its connected component.

    Args:
        pairs: Which documents are paired; symmetric.
    """
    count = len(pairs)
    labels = np.arange(count)
    reachable = pairs | np.eye(count, dtype=bool)
    while True:
        lower = np.where(reachable, labels, count).min(1, initial=count)
        lower = lower[lower]  # follows two pairs in one step, so that long chains take few steps
        if (lower == labels).all():
            return labels
        labels = lower
