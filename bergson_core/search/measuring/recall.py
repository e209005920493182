"""Measures how many of the truly best rows are among the candidates, for every index before it is published.

Recall@10 is the share of the ten rows with the best exact scores that the candidates contain. It is measured with
the made-up queries that the notice is calibrated with (`null_queries`), and the leanest search that reaches the
`min_recall` of the spec is published.

Legend: q queries, n rows of a shard, k candidates of a query, m modules, d numbers per module, D = m·d.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import torch
from jaxtyping import Float, Float32, Int
from torch import Tensor

from bergson_core.errors import InvalidInput
from bergson_core.gradients.row_collector import RowCollector
from bergson_core.schemas.build import SearchKind, SearchSpec
from bergson_core.search.candidates import CandidateSearch
from bergson_core.search.exact_scores import ExactScorer
from bergson_core.search.measuring.null_queries import (
    NullQueries,
    QuerySources,
    collect_null_queries,
    count_null_queries,
)
from bergson_core.search.profile import CANDIDATES_PER_EXTRA_RESULT, Profile
from bergson_core.shards.shard import RowShape, Shard
from bergson_core.storage.manifest import SearchEntry
from bergson_core.utils.progress import ProgressCallback

RECALL_QUERY_COUNT: Final = 64
"""Most queries that the recall is measured with."""
RECALL_DEPTH: Final = 10
"""Best rows of a query that are looked for among its candidates."""
_MIN_CANDIDATES: Final = {
    kind: RECALL_DEPTH * candidates for kind, candidates in CANDIDATES_PER_EXTRA_RESULT.items()
}
"""Candidates for the ten best rows that are tried first; the number is doubled until the recall is reached."""
_MAX_CANDIDATES: Final[dict[SearchKind, int]] = {
    "float16": 40 * RECALL_DEPTH,
    "rabitq": 400 * RECALL_DEPTH,
    "hamming": 2000 * RECALL_DEPTH,
}
"""Candidates for the ten best rows beyond which no larger number is tried."""
_MIN_BYTES_FOR_ONE_BIT: Final = 2**28
"""Size of φ in float16 above which one bit per number is tried first."""
_CANDIDATE_CHUNK_SIZE: Final = 2**16
"""Candidates of all queries together that are looked for at a time."""
_UNMEASURED_FACTOR: Final[dict[SearchKind, int]] = {"float16": 1, "rabitq": 10, "hamming": 10}
"""Times as many candidates are taken without a measurement as are tried first with one."""
_UNMEASURED_SHARE: Final = 100
"""At least one of so many rows is a candidate without a measurement, but where φ is compared in float16."""
_RELATIVE_TOLERANCE: Final = 1e-5
_ABSOLUTE_TOLERANCE: Final = 1e-9
"""How far below the tenth best score a candidate's score may lie, by rounding, and count as equal to it."""


@dataclass(frozen=True)
class RecallQueries:
    """Queries that the search of an index is measured with.

    Attributes:
        row_numbers: For each query [q] the number of the row that does not count, because it is the query's own; -1 for
            a query that is no document.
        rows: Raw gradient rows [q, m, d] of the queries.
        null_queries: What the notice is calibrated with (`significance`); None where it is not calibrated.
    """

    row_numbers: Int[np.ndarray, " q"]
    rows: Float[Tensor, "q m d"]
    null_queries: NullQueries | None = None

    @classmethod
    def collect(
        cls,
        collector: RowCollector,
        sources: QuerySources,
        budget_tokens: int,
        report: ProgressCallback,
    ) -> "RecallQueries":
        """Makes null queries of a sample of the documents, which serve as queries of both kinds.

        A query that is a document, or the end of one, is found too easily where a corpus says a thing twice.

        Args:
            collector: Runs the model.
            sources: The documents, `SOURCE_DOCUMENTS` of them at most.
            budget_tokens: Tokens of a batch, padding included.
            report: Called with the progress after each batch.
        """
        count = count_null_queries(sources.documents, sources.index_rows)
        null_queries = collect_null_queries(collector, sources, count, budget_tokens, report)
        rows = null_queries.rows[:RECALL_QUERY_COUNT]
        return cls(np.full(len(rows), -1), rows, null_queries)


def search_kinds_to_try(search: SearchSpec, shape: RowShape, rows: int) -> tuple[SearchKind, ...]:
    """Returns the kinds of search to try, the leanest first.

    Args:
        search: What the spec asks for.
        shape: Shape of the rows.
        rows: Number of rows in the index.
    """
    if shape.kind == "sign":
        return ("hamming",)
    if search.kind != "auto":
        return ("float16",) if search.kind == "exact" else ("rabitq",)
    is_large = 2 * shape.modules * shape.width * rows > _MIN_BYTES_FOR_ONE_BIT
    return ("rabitq", "float16") if is_large else ("float16",)


def choose_search_kind(
    kinds: Sequence[SearchKind], min_recall: float, measure: Callable[[SearchKind], SearchEntry]
) -> SearchEntry:
    """Returns the measurement of the first kind of search that reaches `min_recall`.

    Args:
        kinds: The kinds to try, in order.
        min_recall: Recall@10 to reach.
        measure: Builds the search of a kind, and measures it.

    Raises:
        InvalidInput: No kind reaches `min_recall`.
    """
    entries = []
    for kind in kinds:
        entries.append(measure(kind))
        if entries[-1].recall_at_10 is None or entries[-1].recall_at_10 >= min_recall:
            return entries[-1]
    recalls = ", ".join(
        f"{entry.recall_at_10:.3f} by {entry.kind} at {entry.candidates} candidates" for entry in entries
    )
    raise InvalidInput(
        f"the candidates reach a recall@10 of {recalls}, less than min_recall {min_recall}: nothing is published. "
        "Build again with a lower min_recall or search kind exact, which reuse the finished rows, or with other rows"
    )


def unmeasured_entry(kind: SearchKind, rows: int) -> SearchEntry:
    """Returns an entry whose recall was not measured, with more candidates than are usually needed.

    Args:
        kind: The kind of search.
        rows: Number of rows in the index.
    """
    factor = _UNMEASURED_FACTOR[kind]
    count = max(factor * _MIN_CANDIDATES[kind], rows // _UNMEASURED_SHARE if factor > 1 else 0)
    return SearchEntry(
        kind=kind,
        candidates=min(rows, count),
        recall_at_10=None,
        opponents_recall_at_10=None,
        queries=0,
        rows=rows,
    )


def measure_recall(
    queries: RecallQueries,
    profile: Profile,
    shards: Sequence[Shard],
    candidate_search: CandidateSearch,
    min_recall: float,
) -> SearchEntry:
    """Returns the smallest number of candidates that reaches `min_recall`, and its recall.

    Numbers of candidates are doubled, from ten times `CANDIDATES_PER_EXTRA_RESULT` on; if none reaches `min_recall`,
    the largest one is returned. The truth that candidates are compared with are the exact scores of all rows but the
    query's own. The recall of opponents is measured with the number of candidates that proponents need.

    Where the smallest number is that of all rows, the recall is 1 without any query. Without queries it is not known in
    a larger index: no document has a gradient there.

    Args:
        queries: The queries to measure with.
        profile: The default profile.
        shards: All shards of the index.
        candidate_search: The search to measure.
        min_recall: Recall@10 to reach.
    """
    rows, kind = sum(shard.entry.rows for shard in shards), candidate_search.kind
    if rows <= _MIN_CANDIDATES[kind]:
        entry = unmeasured_entry(kind, rows)
        return entry.model_copy(update={"recall_at_10": 1.0, "opponents_recall_at_10": 1.0})
    if len(queries.rows) == 0:
        return unmeasured_entry(kind, rows)
    phi, weights = profile.prepare_queries(queries.rows)
    max_candidates = min(rows, max(_MAX_CANDIDATES[kind], rows // 10 if kind == "hamming" else 0))
    counters: list[_RecallCounter] = []
    for sign in (1, -1):
        chunks = (sign * phi).split(max(1, _CANDIDATE_CHUNK_SIZE // max_candidates))
        candidates = np.concatenate(
            [candidate_search.find_row_numbers(chunk, max_candidates) for chunk in chunks]
        )
        counters.append(_RecallCounter(sign, queries.row_numbers, candidates))
    for first_row, scores in ExactScorer(shards, profile).iter_scores(weights):
        for counter in counters:
            counter.add(first_row, scores)
    proponents, opponents = (counter.recall_by_count() for counter in counters)
    count = min(max_candidates, _MIN_CANDIDATES[kind])
    while count < max_candidates and proponents[count - 1] < min_recall:
        count = min(max_candidates, 2 * count)
    return SearchEntry(
        kind=kind,
        candidates=count,
        recall_at_10=float(proponents[count - 1]),
        opponents_recall_at_10=float(opponents[count - 1]),
        queries=len(queries.row_numbers),
        rows=rows,
    )


class _RecallCounter:
    """Counts how many of the ten best rows of each query are among its candidates.

    A row that scores as high as the tenth best row is as good a result, since a corpus may contain a document twice. So
    candidates are compared by score and not by number.
    """

    def __init__(
        self, sign: int, own_rows: Int[np.ndarray, " q"], candidates: Int[np.ndarray, "q k"]
    ) -> None:
        """Takes what there is before the scores are known.

        Args:
            sign: What scores are multiplied with, so that the best are the highest.
            own_rows: Number [q] of each query's own row, which does not count.
            candidates: Row numbers [q, k] of the candidates, best first.
        """
        self._sign, self._own_rows = sign, torch.from_numpy(own_rows)[:, None]
        self._best = torch.empty(len(own_rows), 0)
        self._candidate_scores = _CandidateScores(candidates)
        self._rows = 0

    def add(self, first_row: int, scores: Float[Tensor, "q n"]) -> None:
        """Takes the scores of n rows, the first of which has the number `first_row`. Rows pass by in their order."""
        row_numbers = torch.arange(first_row, first_row + scores.shape[1])
        scores = (self._sign * scores).masked_fill(row_numbers == self._own_rows, -torch.inf)
        best = torch.cat([self._best, scores], dim=1)
        self._best = best.topk(min(RECALL_DEPTH, best.shape[1])).values
        self._candidate_scores.pick(first_row, scores)
        self._rows += scores.shape[1]

    def recall_by_count(self) -> Float[np.ndarray, " k"]:
        """Returns the recall, averaged over the queries, of the first 1, 2, …, k candidates."""
        depth = min(RECALL_DEPTH, max(1, self._rows - 1))
        lowest = self._best[:, depth - 1 : depth]
        threshold = (lowest - _RELATIVE_TOLERANCE * lowest.abs() - _ABSOLUTE_TOLERANCE).numpy()
        is_good = self._candidate_scores.scores >= threshold
        return is_good.cumsum(1).clip(max=depth).mean(0) / depth


class _CandidateScores:
    """Picks the scores of candidates out of the scores of all rows, which pass by in the order of the rows."""

    def __init__(self, candidates: Int[np.ndarray, "q k"]) -> None:
        self.scores: Float32[np.ndarray, "q k"] = np.full(candidates.shape, -np.inf, dtype=np.float32)
        self._candidates = candidates
        self._order = np.argsort(candidates, axis=None)
        """Positions in the flattened `candidates`, in the order of the rows."""
        self._picked = 0

    def pick(self, first_row: int, scores: Float[Tensor, "q n"]) -> None:
        """Takes the scores of the candidates among n rows, the first of which has the number `first_row`."""
        row_numbers = self._candidates.ravel()
        end = int(np.searchsorted(row_numbers, first_row + scores.shape[1], sorter=self._order))
        positions, self._picked = self._order[self._picked : end], end
        queries = positions // self._candidates.shape[1]
        self.scores.ravel()[positions] = scores.numpy()[queries, row_numbers[positions] - first_row]
