"""The rows of an index, open for search: candidates, exact scores, what is hidden or filtered. No model here.

Legend: q queries, m layers, d numbers a layer, D = m·d, k candidates.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from jaxtyping import Float, Float32
from torch import Tensor

from bergson_core.schemas.filters import Condition
from bergson_core.schemas.query import AttributionQuery, Direction
from bergson_core.schemas.results import ResultRow
from bergson_core.search.exact_scores import StoredRow
from bergson_core.search.metadata_filter import MetadataFilter
from bergson_core.search.profile import Profile
from bergson_core.search.visible_rows import VisibleRows
from bergson_core.shards.shard import Shard


@dataclass(frozen=True)
class SearchRequest:
    """What of a query concerns the search."""

    top_k: int
    direction: Direction
    include: Sequence[str]
    profile: str
    filter: Mapping[str, Condition] | None

    @classmethod
    def from_query(cls, query: AttributionQuery) -> "SearchRequest":
        return cls(query.top_k, query.direction, query.include, query.profile, query.filter)

    def can_be_batched_with(self, other: "SearchRequest") -> bool:
        """Whether both can be searched for together."""
        return self.profile == other.profile and self.filter == other.filter


@dataclass(frozen=True)
class StoredDocument:
    """What it takes to take the score of a row apart by its tokens: the document's text, and what is stored of it."""

    prompt: str
    completion: str | None
    row: StoredRow


@dataclass(frozen=True)
class Hit:
    """A row that was found; with `retold` where the query asks what its tokens do."""

    row: ResultRow
    document: StoredDocument | None = None


@dataclass(frozen=True)
class SearchResult:
    """Hits, best first, None for a direction that was not asked for; `sampled` are the scores of the sampled rows."""

    proponents: Sequence[Hit] | None
    opponents: Sequence[Hit] | None
    background_scores: Float32[np.ndarray, " r"]


class Searcher(Protocol):
    """The shards of an index, open for search."""

    @property
    def shards(self) -> Sequence[Shard]:
        """The undamaged shards."""
        ...

    @property
    def profiles(self) -> Mapping[str, Profile]:
        """Profiles by name."""
        ...

    @property
    def metadata(self) -> MetadataFilter:
        """The filter over the metadata columns of the index."""
        ...

    @property
    def visible(self) -> VisibleRows:
        """Which rows have not been taken down."""
        ...

    @property
    def damaged(self) -> Mapping[str, str]:
        """What is wrong with each damaged shard, by its name."""
        ...

    def search(self, blocks: Float[Tensor, "q m d"], queries: Sequence[SearchRequest]) -> list[SearchResult]:
        """Returns what is found for each query from its gradient row."""
        ...
