"""The cosines of rows of an index, and what they say of documents that are nearly the same to the model.

Legend: k documents, m modules, d numbers per module, D = m·d.
"""

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Final

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from bergson_core.attribution.document_selection import RowLocation
from bergson_core.search.features import compute_features
from bergson_core.search.searcher import Searcher
from bergson_core.storage.manifest import Manifest

_PARTS: Final = 4
_ROUNDING: Final = 1e-5
"""How far rounding may put a product below its true value."""


def near_pairs(
    searcher: Searcher, manifest: Manifest, locations: Sequence[RowLocation], profile: str, threshold: float
) -> Bool[np.ndarray, "k k"]:
    """Returns which rows have a cosine of at least `threshold`, as the index compares rows.

    It is the cosine of whole rows, or with `normalize="block"` the mean of the modules' cosines. For sign rows it is
    estimated from the share of signs that agree. Memory is that of k rows and k² cosines.

    Args:
        searcher: The shards of the index.
        manifest: Manifest of the index.
        locations: Where the k rows are.
        profile: Profile to compare under.
        threshold: Smallest cosine of a pair, above 0.

    Returns:
        The pairs; of a row with itself nothing is said.
    """
    has_sign_rows = manifest.spec.gradients.rows == "sign"
    phi = _read_features(searcher, manifest, locations, profile)
    left, products = multiply_near_rows(phi, sign_product(threshold) if has_sign_rows else threshold)
    cosines = cosines_from_sign_products(torch.from_numpy(products)).numpy() if has_sign_rows else products
    pairs = np.zeros((len(phi), len(phi)), dtype=bool)
    pairs[np.ix_(left, left)] = cosines >= threshold
    return pairs


def _read_features(
    searcher: Searcher, manifest: Manifest, locations: Sequence[RowLocation], profile: str
) -> Float[np.ndarray, "k D"]:
    """Returns φ of rows, of unit length."""
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
    return phi.numpy()


def multiply_near_rows(
    rows: Float[np.ndarray, "k D"], least: float
) -> tuple[Int[np.ndarray, " _"], Float[np.ndarray, "_ _"]]:
    """Returns the rows that may have a product of at least `least` with another row, and their products.

    The products are summed up part by part. After each part, the rows are left out whose products with all others stay
    below `least`, however much their remaining numbers agree: at most by the product of the lengths of what remains
    (Cauchy-Schwarz). Of rows that mostly differ, few are left after the first part.

    Args:
        rows: The rows.
        least: The smallest product that counts.

    Returns:
        (numbers of the rows that are left, their products).
    """
    left, products = np.arange(len(rows)), np.zeros((len(rows), len(rows)), dtype=rows.dtype)
    bounds = np.linspace(0, rows.shape[1], _PARTS + 1).astype(int)
    for start, stop in pairwise(bounds):
        part = rows[left, start:stop]
        products += part @ part.T  # NumPy computes a product with itself in half of the time
        remaining = np.linalg.norm(rows[left, stop:], axis=1)
        may_reach = products + np.outer(remaining, remaining) >= least - _ROUNDING
        np.fill_diagonal(may_reach, False)
        kept = np.flatnonzero(may_reach.any(1))
        left, products = left[kept], products[np.ix_(kept, kept)]
    return left, products


def sign_product(cosine: float) -> float:
    """Returns the mean product of signs that stands for a cosine: what `cosines_from_sign_products` turns into it."""
    return 2 / math.pi * math.asin(cosine)


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
