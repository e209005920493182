"""Groups documents that are nearly the same to the model, by the cosines of their rows.

Legend: k documents, m modules, d numbers per module, D = m·d. The number of a document is that of its row in the index.
"""

from collections.abc import Sequence
from typing import Final

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from bergson_core.attribution.index import AttributionIndex
from bergson_core.errors import InvalidInput
from bergson_core.search.features import compute_features
from bergson_core.storage.document_table import mask_of_ids
from bergson_core.storage.layout import DEFAULT_PROFILE

MAX_DOCUMENTS: Final = 1000
"""Documents that are compared with each other at most: as many as an answer has results."""


def group_near_duplicates(
    index: AttributionIndex,
    numbers: Sequence[int],
    *,
    threshold: float = 0.95,
    profile: str = DEFAULT_PROFILE,
) -> list[list[int]]:
    """Groups documents whose rows are nearly the same.

    Two documents whose cosine is at least `threshold` are in one group, and so are all documents of a chain of such
    pairs. The cosine is that of φ, as the index compares rows: the cosine of whole rows, or with `normalize="block"`
    the mean of the modules' cosines. For sign rows it is estimated from the share of signs that agree. Memory is that
    of k rows and k² cosines.

    Args:
        index: The index.
        numbers: Numbers of the documents (`find_document_numbers`), at most 1,000. A number that stands twice counts
            once.
        threshold: Smallest cosine of a pair, above 0 and at most 1.
        profile: Profile to compare under.

    Returns:
        The groups, each a list of numbers. A document like no other is a group of its own. Groups, and documents within
        them, are in the order of `numbers`.

    Raises:
        InvalidInput: No document has one of the numbers, there are more than 1,000, or the threshold or profile is
            wrong.
    """
    index.require_profile(profile)
    if not 0 < threshold <= 1:
        raise InvalidInput(f"threshold is {threshold}; expected a cosine above 0, at most 1")
    distinct = np.array(list(dict.fromkeys(numbers)), dtype=np.int64)
    if len(distinct) > MAX_DOCUMENTS:
        raise InvalidInput(f"got {len(distinct)} documents to compare; expected at most {MAX_DOCUMENTS}")
    if unknown := [int(number) for number in distinct if not 0 <= number < index.manifest.rows]:
        raise InvalidInput(
            f"{index.name} has the documents 0 to {index.manifest.rows - 1}; there is no {unknown[0]}"
        )
    labels = label_components(_cosines(index, distinct, profile) >= threshold)
    groups: dict[int, list[int]] = {}
    for number, label in zip(distinct, labels, strict=True):
        groups.setdefault(int(label), []).append(int(number))
    return list(groups.values())


def find_document_numbers(index: AttributionIndex, ids: Sequence[str]) -> list[int]:
    """Returns the numbers of the documents with these ids, in the order of the ids.

    Raises:
        InvalidInput: The index has no document with one of the ids, or the document was taken down.
    """
    numbers: dict[str, int] = {}
    for shard, visible in zip(index.shards, index.visible(), strict=True):
        mask = mask_of_ids(shard.documents, ids)
        for offset in np.flatnonzero(mask if visible is None else mask & visible).tolist():
            numbers[shard.documents["id"][offset].as_py()] = shard.entry.first_row + offset
    if missing := [document_id for document_id in ids if document_id not in numbers]:
        raise InvalidInput(f"{index.name} has no document of the id {missing[0]!r}")
    return [numbers[document_id] for document_id in ids]


def _cosines(
    index: AttributionIndex, numbers: Int[np.ndarray, " k"], profile: str
) -> Float[np.ndarray, "k k"]:
    """Returns the cosine of each pair of these documents."""
    opened, has_sign_rows = index.profiles[profile], index.manifest.spec.gradients.rows == "sign"
    normalize = "block" if opened.normalize == "block" and not has_sign_rows else "row"
    phi = torch.zeros(len(numbers), index.collector.dimensions)
    for shard in index.shards:
        offsets = numbers - shard.entry.first_row
        in_shard = (offsets >= 0) & (offsets < shard.entry.rows)
        if in_shard.any():
            rows = shard.rows(offsets[in_shard])
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
