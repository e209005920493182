"""How sure the sum of a group of results is, and how strong.

The scores of a group share the projections, so that the error of their sum is computed from φ of the rows
(`SumOfScores`). What the interval allows for is that the group was chosen by its sum, and, where not all documents were
folded, its members by their scores (`ScoreError.interval_of_group`).

A group is as strong as a document would be that has the mean of the members' scores. So no group is strong in an answer
whose best document does not stand out.

Legend: k members, m modules, d numbers per module.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Float
from torch import Tensor

from bergson_core.attribution.answering import QueryAnswerer
from bergson_core.attribution.document_selection import RowLocation
from bergson_core.attribution.follow_up.answer_steps import Steps
from bergson_core.attribution.follow_up.query_features import query_features
from bergson_core.schemas.answer_parts.groups import ResultGroup
from bergson_core.schemas.query import AttributionQuery
from bergson_core.schemas.results import Answer, ResultRow
from bergson_core.search.exact_scores import ExactScorer
from bergson_core.search.measuring.significance import strengths_of
from bergson_core.search.projection_noise.intervals import Interval
from bergson_core.search.projection_noise.score_noise import ScoreNoise, SumOfScores
from bergson_core.search.searcher import SearchRequest


@dataclass(frozen=True)
class FoldedGroup:
    """A group that results were folded into.

    Attributes:
        group: The group as the answer has it.
        rows: Its members as results [k], the best first.
        locations: Where the rows of the members are [k].
    """

    group: ResultGroup
    rows: Sequence[ResultRow]
    locations: Sequence[RowLocation]


@dataclass(frozen=True)
class GroupRanking:
    """How the groups of a direction were chosen.

    Attributes:
        groups: How many groups there are, also of those that are not shown.
        has_all_documents: Whether all documents were folded, and not the best of them alone.
        is_lowest: Whether the lowest scores are the best.
    """

    groups: int
    has_all_documents: bool
    is_lowest: bool


class GroupIntervals:
    """Computes intervals and strengths of the groups of an answer.

    Args:
        answerer: Answers the queries of the index.
        query: The query.
        answer: The answer to the query as it is searched for.
    """

    def __init__(self, answerer: QueryAnswerer, query: AttributionQuery, answer: Answer) -> None:
        self._answerer, self._query = answerer, query
        self._noise = ScoreNoise.of(answerer.manifest)
        self._features: Float[Tensor, "m d"] | None = None
        if self._noise is not None:
            self._features = query_features(answerer, query, answer.query)

    def measure(self, folded: Sequence[FoldedGroup], ranking: GroupRanking) -> Steps[list[ResultGroup]]:
        """Returns groups, the best first, with the intervals of their sums and their strengths.

        Args:
            folded: The groups.
            ranking: How they were chosen.

        Returns:
            A generator that yields between two steps, and returns the groups.
        """
        measured = []
        for rank, item in enumerate(folded, start=1):
            interval = yield from self._interval(item, rank, ranking)
            measured.append(item.group.model_copy(update={"interval": interval}))
        return measured if ranking.is_lowest else self._with_strengths(measured, folded)

    def _interval(self, folded: FoldedGroup, rank: int, ranking: GroupRanking) -> Steps[Interval | None]:
        """Returns the interval of the sum of a group; None where the rows do not show their noise."""
        if self._noise is None or self._features is None:
            return None
        searcher = self._answerer.searcher
        total = SumOfScores(self._noise, is_sum=self._query.behaviour is not None)
        scorer = ExactScorer(searcher.shards, searcher.profiles[self._query.profile])
        for rows in scorer.iter_features(*np.array(folded.locations).T):
            total.add(rows, self._features)
            yield
        chosen = None
        if not ranking.has_all_documents:
            chosen = [row.interval for row in folded.rows if row.interval is not None]
        return total.error().interval_of_group(
            folded.group.score, rank, ranking.groups, chosen, is_lowest=ranking.is_lowest
        )

    def _with_strengths(
        self, groups: Sequence[ResultGroup], folded: Sequence[FoldedGroup]
    ) -> list[ResultGroup]:
        """Returns groups of proponents with their strengths."""
        request = SearchRequest.from_query(self._query)
        notice = self._answerer.calibrated_notice(request)
        if notice is None or self._features is None or not groups:
            return list(groups)
        by_features = replace(request, include=(), by_features=True)
        result = self._answerer.searcher.score_rows(self._features, by_features, folded[0].locations[:1])
        means = [group.score / group.count for group in groups]
        parts = [_divide(group.interval, group.count) for group in groups]
        found = strengths_of(means, parts, result.background_scores, notice)
        return [
            group.model_copy(update={"strength": strength})
            for group, strength in zip(groups, found, strict=True)
        ]


def _divide(interval: Interval | None, count: int) -> Interval | None:
    return None if interval is None else (interval[0] / count, interval[1] / count)
