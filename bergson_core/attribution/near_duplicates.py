"""Which of some documents are nearly the same to the model, by the cosines of their rows.

Legend: k documents, m layers, d numbers a layer, D = m·d.
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
"""That are compared with each other: all results of an answer."""


def group_near_duplicates(
    index: AttributionIndex,
    numbers: Sequence[int],
    *,
    threshold: float = 0.95,
    profile: str = DEFAULT_PROFILE,
) -> list[list[int]]:
    """The documents of these numbers in groups; a document like no other is a group of its own.

    Two whose cosine is at least `threshold` are in one group, and so are all of a chain of such pairs. The cosine is
    that of φ, as the index compares rows: of whole rows, or the mean over layers. Of sign rows it is estimated from the
    share of signs that agree. Groups, and documents in them, are in the order of `numbers`; one that stands twice
    counts once. Memory is that of k rows and k² cosines.
    Raises `InvalidInput` for a number that no document has, more than `MOST_DOCUMENTS`, or an unknown profile.
    """
    index.require_profile(profile)
    if not 0 < threshold <= 1:
        raise InvalidInput(f"threshold is {threshold}; expected a cosine above 0, at most 1")
    places = np.array(list(dict.fromkeys(numbers)), dtype=np.int64)
    if len(places) > MAX_DOCUMENTS:
        raise InvalidInput(f"got {len(places)} documents to compare; expected at most {MAX_DOCUMENTS}")
    if wrong := [int(number) for number in places if not 0 <= number < index.manifest.rows]:
        raise InvalidInput(
            f"{index.name} has the documents 0 to {index.manifest.rows - 1}; there is no {wrong[0]}"
        )
    groups: dict[int, list[int]] = {}
    for number, label in zip(
        places, label_components(_cosines(index, places, profile) >= threshold), strict=True
    ):
        groups.setdefault(int(label), []).append(int(number))
    return list(groups.values())


def find_document_numbers(index: AttributionIndex, ids: Sequence[str]) -> list[int]:
    """The numbers of the documents of these ids. Raises `InvalidInput` naming an id that the index does not have."""
    found = {}
    for shard, visible in zip(index.shards, index.visible(), strict=True):
        here = mask_of_ids(shard.documents, ids)
        for place in np.flatnonzero(here if visible is None else here & visible).tolist():
            found[shard.documents["id"][place].as_py()] = shard.entry.first_row + place
    if missing := [one for one in ids if one not in found]:
        raise InvalidInput(f"{index.name} has no document of the id {missing[0]!r}")
    return [found[one] for one in ids]


def _cosines(
    index: AttributionIndex, numbers: Int[np.ndarray, " k"], profile: str
) -> Float[np.ndarray, "k k"]:
    compared, signs = index.profiles[profile], index.manifest.spec.gradients.rows == "sign"
    by_block = compared.normalize == "block" and not signs
    phi = torch.zeros(len(numbers), index.collector.dimensions)
    for shard in index.shards:
        places = numbers - shard.entry.first_row
        here = (places >= 0) & (places < shard.entry.rows)
        if here.any():
            rows = shard.rows(places[here])
            phi[torch.from_numpy(here)], _ = compute_features(
                rows, compared.weight_preconditioner, "block" if by_block else "row"
            )
    products = phi @ phi.mT
    return (cosines_from_sign_products(products) if signs else products).numpy()


def cosines_from_sign_products(products: Float[Tensor, "k k"]) -> Float[Tensor, "k k"]:
    """cos θ from the mean product of signs, which is 1 - 2θ/π for random projections (Charikar, STOC 2002)."""
    return torch.sin(products * torch.pi / 2)


def label_components(pairs: Bool[np.ndarray, "k k"]) -> Int[np.ndarray, " k"]:
    """For each the first that a chain of pairs leads to; `pairs` are symmetric."""
    count = len(pairs)
    labels = np.arange(count)
    reach = pairs | np.eye(count, dtype=bool)
    while True:
        lower = np.where(reach, labels, count).min(1, initial=count)
        lower = lower[lower]  # twice as far in a step
        if (lower == labels).all():
            return labels
        labels = lower
