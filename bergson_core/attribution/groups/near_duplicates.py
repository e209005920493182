"""Groups documents that are nearly the same to the model, by the cosines of their rows.

Legend: k documents. The number of a document is that of its row in the index.
"""

from collections.abc import Sequence
from typing import Final

import numpy as np
from jaxtyping import Bool, Int

from bergson_core.attribution.follow_up.row_cosines import label_components, near_pairs
from bergson_core.attribution.index import AttributionIndex
from bergson_core.errors import InvalidInput
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
    labels = label_components(_pairs(index, distinct, profile, threshold))
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


def _pairs(
    index: AttributionIndex, numbers: Int[np.ndarray, " k"], profile: str, threshold: float
) -> Bool[np.ndarray, "k k"]:
    """Returns which of these documents have at least that cosine."""
    first_rows = np.array([shard.entry.first_row for shard in index.shards])
    shard_numbers = np.searchsorted(first_rows, numbers, side="right") - 1
    locations = list(zip(shard_numbers.tolist(), (numbers - first_rows[shard_numbers]).tolist(), strict=True))
    return near_pairs(index.searcher, index.manifest, locations, profile, threshold)
