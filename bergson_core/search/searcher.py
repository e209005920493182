"""The interface of a searcher: what is asked of it for each query, and what it returns.

`LocalSearcher` searches the shards of an index in this process, `RaySearcher` on the machines of a cluster. A searcher
needs no model: it is given the gradient rows of the queries.

Legend: q queries, v rows of the background sample that are visible, m modules, d numbers per module.
"""

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, Protocol

import numpy as np
from jaxtyping import Float, Float32
from torch import Tensor

from bergson_core.schemas.filters import Condition
from bergson_core.schemas.query import AttributionQuery, Direction
from bergson_core.schemas.results import ResultRow
from bergson_core.search.exact_scores import StoredRow
from bergson_core.search.metadata_filter import MetadataFilter
from bergson_core.search.profile import Profile
from bergson_core.search.projection_noise.intervals import Interval, ScoreError
from bergson_core.search.visible_rows import VisibleRows
from bergson_core.shards.shard import Shard


@dataclass(frozen=True)
class SearchRequest:
    """The part of a query that concerns the search. The fields are those of `AttributionQuery`.

    With `by_features`, the row that is given for the query is φ already, or a sum of φ, as that of a behaviour is.
    """

    top_k: int
    direction: Direction
    include: Sequence[str]
    profile: str
    filter: Mapping[str, Condition] | None
    group_by: Literal["document"] | None = None
    between: tuple[int, int] | None = None
    by_features: bool = False

    @classmethod
    def from_query(cls, query: AttributionQuery) -> "SearchRequest":
        """Returns the request that a query makes."""
        return cls(
            query.top_k,
            query.direction,
            query.include,
            query.profile,
            query.filter,
            "document" if query.group_by == "document" else None,  # other groups are formed afterwards
            query.between,
            query.behaviour is not None,
        )

    @cached_property
    def batch_key(self) -> tuple[Hashable, ...]:
        """What requests have in common that are searched for together."""
        # The filter counts as text, in which 1 and true differ.
        return self.profile, self.group_by, self.between, self.by_features, repr(self.filter)


@dataclass(frozen=True)
class StoredDocument:
    """A document, as `read_document` returns it, and its stored row: what is needed to split the row's score."""

    document: dict[str, Any]
    row: StoredRow


@dataclass(frozen=True)
class Hit:
    """A row that was found.

    Attributes:
        row: The row as a result.
        error: The error of its score; None where rows do not show their noise.
        document: The document behind it, where the request includes `tokens`.
    """

    row: ResultRow
    error: ScoreError | None = None
    document: StoredDocument | None = None

    def interval(self, rows: int, *, is_lowest: bool) -> Interval | None:
        """Returns the interval of its score, among those of so many rows; None where the error is not known."""
        if self.error is None:
            return None
        return self.error.interval_of_result(self.row.score, self.row.rank, rows, is_lowest=is_lowest)


@dataclass(frozen=True)
class SearchResult:
    """What a searcher returns for one query.

    Attributes:
        proponents: The rows with the highest scores, best first; None where the request does not ask for them.
        opponents: The rows with the lowest scores, lowest first; None where the request does not ask for them.
        background_scores: Scores [v] of the rows of the background sample, which results are compared with.
        rows: Number of rows among which the hits were found; 1 for hits that were not found by their scores.
    """

    proponents: Sequence[Hit] | None
    opponents: Sequence[Hit] | None
    background_scores: Float32[np.ndarray, " v"]
    rows: int = 1


class Searcher(Protocol):
    """The shards of an index, open for search. For use by one thread."""

    @property
    def shards(self) -> Sequence[Shard]:
        """The shards that are not damaged."""
        ...

    @property
    def profiles(self) -> Mapping[str, Profile]:
        """The profiles of the index, by name."""
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
        """What is wrong with each damaged shard, by the name of the shard."""
        ...

    def allowed_rows(self, conditions: Mapping[str, Condition] | None) -> Sequence[np.ndarray | None]:
        """Returns for each shard which rows are visible and meet all conditions: bool [n], or None for all of them."""
        ...

    def score_rows(
        self, row: Float[Tensor, "m d"], request: SearchRequest, locations: Sequence[tuple[int, int]]
    ) -> SearchResult:
        """Returns chosen rows as the `proponents` of a query, in the order in which they are given.

        Args:
            row: The raw gradient row [m, d] of the query, or what stands for it with `by_features`.
            request: What is asked for; how many rows, in which direction, and a filter do not count.
            locations: For each row (position of its shard in `shards`, offset within the shard); one at least.
        """
        ...

    def search(self, rows: Float[Tensor, "q m d"], requests: Sequence[SearchRequest]) -> list[SearchResult]:
        """Returns a result for each query.

        Args:
            rows: Raw gradient rows [q, m, d] of the queries, or what stands for them with `by_features`.
            requests: What is asked for each query.

        Raises:
            ClusterUnavailable: The machines that hold the shards do not answer.
        """
        ...
