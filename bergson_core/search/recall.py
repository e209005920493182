"""Measures how many of the truly best rows are among the candidates, for every index before it is published.

Recall@10 is the share of the ten rows with the best exact scores that the candidates contain. It is measured with
documents of the index as queries, and the leanest search that reaches the `min_recall` of the spec is published.

Legend: q queries, n rows of a shard, k candidates of a query, m modules, d numbers per module, D = m·d.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Final

import numpy as np
import torch
from jaxtyping import Float, Float32, Int
from torch import Tensor

from bergson_core.errors import InvalidInput
from bergson_core.gradients.row_collector import RowCollector, collect_rows
from bergson_core.schemas.build import SearchKind, SearchSpec
from bergson_core.search.candidates import CandidateSearch
from bergson_core.search.exact_scores import ExactScorer
from bergson_core.search.profile import CANDIDATES_PER_EXTRA_RESULT, Profile
from bergson_core.search.significance import NullQueries, collect_null_queries
from bergson_core.shards.shard import RowShape, Shard
from bergson_core.storage.manifest import SearchEntry
from bergson_core.tokens.tokenization import Tokens
from bergson_core.utils.background import stop_if_abandoned

RECALL_QUERY_COUNT: Final = 64
"""Documents that are taken as queries."""
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
_ROW_CHUNK_SIZE: Final = 1024
_CANDIDATE_CHUNK_SIZE: Final = 2**16
"""Candidates of all queries together that are looked for at a time."""
_RELATIVE_TOLERANCE: Final = 1e-5
_ABSOLUTE_TOLERANCE: Final = 1e-9
"""How far below the tenth best score a candidate's score may lie, by rounding, and count as equal to it."""


@dataclass(frozen=True)
class RecallQueries:
    """Documents of an index that are taken as queries.

    Attributes:
        row_numbers: Numbers [q] of the documents' rows in the index.
        rows: Raw gradient rows [q, m, d] of the queries.
        null_queries: What the notice is calibrated with (`significance`); None where it is not calibrated.
    """

    row_numbers: Int[np.ndarray, " q"]
    rows: Float[Tensor, "q m d"]
    null_queries: NullQueries | None = None

    @classmethod
    def from_rows(
        cls, row_numbers: Int[np.ndarray, " q"], rows: Float[Tensor, "q D"], modules: int
    ) -> "RecallQueries":
        """Returns the queries of these rows without those that are zero or not finite, which no row is like.

        Args:
            row_numbers: Numbers [q] of the documents' rows in the index.
            rows: Raw gradient rows [q, D] of the queries.
            modules: Number of modules that a row consists of.
        """
        is_usable = rows.isfinite().all(1) & rows.any(1)
        return cls(row_numbers[is_usable.numpy()], rows[is_usable].reshape(int(is_usable.sum()), modules, -1))

    @classmethod
    def collect(
        cls,
        collector: RowCollector,
        row_numbers: Sequence[int],
        documents: Sequence[Tokens],
        budget_tokens: int,
        tick: Callable[[], object] = lambda: None,
    ) -> "RecallQueries":
        """Collects the gradients of the last quarter of each document, as of a completion, and of null queries.

        The rows of whole documents are found too easily where a corpus says a thing twice. On the sign rows of the
        demo, 400 candidates contained all ten best rows of whole documents, 0.90 of those of last quarters, and 0.94 of
        those of real questions.

        Args:
            collector: Runs the model.
            row_numbers: Numbers [q] of the documents' rows in the index.
            documents: The documents.
            budget_tokens: Tokens of a batch, padding included.
            tick: Called between batches.
        """
        endings = [_label_last_quarter(document) for document in documents]
        rows, _ = collect_rows(collector, endings, budget_tokens, tick)
        queries = cls.from_rows(np.asarray(row_numbers), torch.from_numpy(rows), len(collector.slices))
        null_queries = collect_null_queries(collector, row_numbers, documents, budget_tokens, tick)
        return replace(queries, null_queries=null_queries)


def _label_last_quarter(document: Tokens) -> Tokens:
    """Returns the document with only the last quarter of its labelled tokens labelled, at least one if there is any."""
    labelled = np.flatnonzero(document.labels)
    labels = np.zeros_like(document.labels)
    labels[labelled[-max(1, len(labelled) // 4) :]] = True
    return Tokens(document.ids, labels)


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
        if entries[-1].recall_at_10 >= min_recall:
            return entries[-1]
    recalls = ", ".join(
        f"{entry.recall_at_10:.3f} by {entry.kind} at {entry.candidates} candidates" for entry in entries
    )
    raise InvalidInput(
        f"the candidates reach a recall@10 of {recalls}, less than min_recall {min_recall}: nothing is published. "
        "Build again with a lower min_recall or search kind exact, which reuse the finished rows, or with other rows"
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

    Args:
        queries: The queries to measure with.
        profile: The default profile.
        shards: All shards of the index.
        candidate_search: The search to measure.
        min_recall: Recall@10 to reach.
    """
    phi, weights = profile.prepare_queries(queries.rows)
    rows, kind = sum(shard.entry.rows for shard in shards), candidate_search.kind
    max_candidates = min(rows, max(_MAX_CANDIDATES[kind], rows // 10 if kind == "hamming" else 0))
    scorer = ExactScorer(shards, profile)
    recalls: list[Float[np.ndarray, " k"]] = []
    for sign in (1, -1):
        chunks = (sign * phi).split(max(1, _CANDIDATE_CHUNK_SIZE // max_candidates))
        candidates = np.concatenate(
            [candidate_search.find_row_numbers(chunk, max_candidates) for chunk in chunks]
        )
        recalls.append(_recall_by_count(sign * weights, queries.row_numbers, candidates, scorer))
    proponents, opponents = recalls
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


def _recall_by_count(
    weights: Float[Tensor, "q m d"],
    own_rows: Int[np.ndarray, " q"],
    candidates: Int[np.ndarray, "q k"],
    scorer: ExactScorer,
) -> Float[np.ndarray, " k"]:
    """Returns the recall, averaged over the queries, of the first 1, 2, …, k candidates.

    A row that scores as high as the tenth best row is as good a result, since a corpus may contain a document twice. So
    candidates are compared by score and not by number.

    Args:
        weights: Weights of the queries, from `Profile.prepare_queries`.
        own_rows: Number [q] of each query's own row, which does not count.
        candidates: Row numbers [q, k] of the candidates, best first.
        scorer: Scores the rows of the index.
    """
    own_row_numbers = torch.from_numpy(own_rows)[:, None]
    best = torch.empty(len(own_rows), 0)
    candidate_scores = _CandidateScores(candidates)
    rows = 0
    for first_row, scores in _iter_scores(scorer, weights):
        row_numbers = torch.arange(first_row, first_row + scores.shape[1])
        scores = scores.masked_fill(row_numbers == own_row_numbers, -torch.inf)
        best = torch.cat([best, scores], dim=1)
        best = best.topk(min(RECALL_DEPTH, best.shape[1])).values
        candidate_scores.pick(first_row, scores)
        rows += scores.shape[1]
    depth = min(RECALL_DEPTH, max(1, rows - 1))
    lowest = best[:, depth - 1 : depth]
    threshold = (lowest - _RELATIVE_TOLERANCE * lowest.abs() - _ABSOLUTE_TOLERANCE).numpy()
    return (candidate_scores.scores >= threshold).cumsum(1).clip(max=depth).mean(0) / depth


def _iter_scores(
    scorer: ExactScorer, weights: Float[Tensor, "q m d"]
) -> Iterator[tuple[int, Float[Tensor, "q n"]]]:
    """Yields the exact scores of all rows, some rows at a time: (number of the first of them, scores [q, n])."""
    query_columns = weights.flatten(1).float().mT
    for shard_number, shard in enumerate(scorer.shards):
        for start in range(0, shard.entry.rows, _ROW_CHUNK_SIZE):
            stop_if_abandoned()
            scores = scorer.score_range(shard_number, slice(start, start + _ROW_CHUNK_SIZE), query_columns)
            yield shard.entry.first_row + start, scores.mT


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
