"""Selects the documents of an index that are unlearned: by their ids, by their metadata, or at random.

A document that was taken down is never selected.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import pyarrow as pa

from bergson_core.errors import DocumentNotFound
from bergson_core.models.index_tokens import tokenize_stored
from bergson_core.models.language_model import LanguageModel
from bergson_core.schemas.filters import Condition
from bergson_core.search.searcher import Searcher
from bergson_core.storage.document_table import (
    mask_of_documents,
    mask_of_ids,
    read_document,
    read_whole_id,
    read_whole_ids,
)
from bergson_core.storage.manifest import Manifest
from bergson_core.tokens.tokenization import Tokens

RowLocation = tuple[int, int]
"""(position of a shard among the searcher's shards, offset of a row within that shard)."""
_DRAW_SIZES: Final = (256, 4096)
"""Rows that are drawn at first, of which those that may be selected are taken. More rows, and at last all, are drawn
only where these are too few."""


@dataclass(frozen=True)
class DocumentSelector:
    """Selects documents of an index; `model` is the one that the index was built from. For use by one thread."""

    manifest: Manifest
    model: LanguageModel
    searcher: Searcher

    def is_visible(self, *locations: RowLocation) -> bool:
        """Returns whether none of the documents has been taken down by now; the log is read once for all of them."""
        masks = self.searcher.visible.masks()
        visible = ((masks[shard_number], offset) for shard_number, offset in locations)
        return all(mask is None or bool(mask[offset]) for mask, offset in visible)

    def locate(self, ids: Collection[str]) -> dict[str, RowLocation]:
        """Returns where the visible documents with these ids are, by id, in the order of the ids."""
        locations: dict[str, RowLocation] = {}
        for shard_number, shard in enumerate(self.searcher.shards):
            for offset in np.flatnonzero(mask_of_ids(shard.documents, ids)).tolist():
                if self.is_visible((shard_number, offset)):
                    locations[shard.documents["id"][offset].as_py()] = (shard_number, offset)
        return {document_id: locations[document_id] for document_id in sorted(locations)}

    def locate_whole(self, ids: Sequence[str], index: str) -> list[RowLocation]:
        """Returns where the visible documents with these ids are, with all chunks of those that were cut.

        Args:
            ids: The ids.
            index: Name of the index, for the error.

        Raises:
            DocumentNotFound: The index has no such document, or it was taken down; the message has the first ten ids.
        """
        locations: list[RowLocation] = []
        found: set[str] = set()
        for shard_number, shard in enumerate(self.searcher.shards):
            visible = self.searcher.visible.masks()[shard_number]
            mask = mask_of_documents(shard.documents, ids)
            mask = mask if visible is None else mask & visible
            locations += [(shard_number, offset) for offset in np.flatnonzero(mask).tolist()]
            for column in (shard.documents["id"], read_whole_ids(shard.documents)):
                found.update(column.filter(pa.array(mask)).to_pylist())
        if missing := [document_id for document_id in ids if document_id not in found]:
            raise DocumentNotFound.for_ids(index, missing)
        return locations

    def locate_matching(self, conditions: Mapping[str, Condition]) -> list[RowLocation]:
        """Returns where the visible documents are that meet all conditions on metadata.

        Raises:
            InvalidInput: The index does not keep a column, or a condition has a value of another type than the column.
        """
        self.searcher.metadata.require_valid(conditions)
        locations: list[RowLocation] = []
        for shard_number, mask in enumerate(self.searcher.allowed_rows(conditions)):
            assert mask is not None  # there are conditions
            locations += [(shard_number, offset) for offset in np.flatnonzero(mask).tolist()]
        return locations

    def has_gradient(self, location: RowLocation) -> bool:
        """Returns whether a document has labelled tokens and a weight, and no gradient that is not finite."""
        shard_number, offset = location
        return _has_gradient(self.searcher.shards[shard_number].documents, offset)

    def draw(self, count: int, seed: int, excluded_ids: Collection[str] = ()) -> dict[str, RowLocation]:
        """Draws visible documents that have a gradient, the same ones for the same seed.

        Args:
            count: How many documents to draw; fewer are returned where the index has no more.
            seed: Seed of the draw.
            excluded_ids: Ids of documents that are not drawn, nor any chunk of them.

        Returns:
            Where the documents are, by id.
        """
        shard_ends = np.cumsum([shard.entry.rows for shard in self.searcher.shards])
        total_rows = int(shard_ends[-1])
        locations: dict[str, RowLocation] = {}
        # The sizes do not follow from `count` or `excluded_ids`, because a draw of another size has other rows in it.
        for size in (*_DRAW_SIZES, total_rows):
            generator = np.random.Generator(np.random.Philox(seed))
            for row in generator.choice(total_rows, min(size, total_rows), replace=False).tolist():
                if len(locations) == count:
                    return locations
                shard_number = int(np.searchsorted(shard_ends, row, "right"))
                shard = self.searcher.shards[shard_number]
                offset = row - int(shard_ends[shard_number]) + shard.entry.rows
                document_id = shard.documents["id"][offset].as_py()
                is_excluded = read_whole_id(shard.documents, offset) in excluded_ids
                is_allowed = _has_gradient(shard.documents, offset) and not is_excluded
                if is_allowed and self.is_visible((shard_number, offset)):
                    locations[document_id] = (shard_number, offset)
        return locations

    def tokenize(self, locations: Sequence[RowLocation]) -> list[Tokens]:
        """Returns the tokens of the documents at these locations, as the index was built from them."""
        documents = [self.read(location) for location in locations]
        return tokenize_stored(documents, self.manifest.spec, self.model)

    def read(self, location: RowLocation) -> dict[str, Any]:
        """Returns the document at a location, as the index has stored it."""
        shard_number, offset = location
        return read_document(self.searcher.shards[shard_number].documents, offset)


def _has_gradient(documents: pa.Table, offset: int) -> bool:
    """Returns whether a document has labelled tokens and a weight, and no gradient that is not finite."""
    has_weight = "weight" not in documents.column_names or documents["weight"][offset].as_py() != 0
    return has_weight and documents["loss"][offset].is_valid and documents["n_tokens"][offset].as_py() > 0
