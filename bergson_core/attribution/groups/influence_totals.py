"""The scores of all documents for a query, summed by a metadata column, with an interval of each sum.

The rows are read twice. First, all of them are scored, drawn to the median by the soft threshold, and summed. Then the
noise of the sums that are returned is estimated from φ of those rows whose scores are not 0, since the threshold has
taken the others out: a row beyond the threshold changes the sum by as much as its score changes, one within it by
nothing. Median and noise of the threshold count as fixed.

Legend: n rows of a shard, m modules, d numbers per module, D = m·d.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
import pyarrow as pa
from jaxtyping import Bool, Float, Int32
from torch import Tensor

from bergson_core.attribution.corpus_scores import make_soft_threshold
from bergson_core.attribution.follow_up.answer_steps import Steps, with_timing
from bergson_core.attribution.follow_up.query_features import query_features
from bergson_core.attribution.index import AttributionIndex
from bergson_core.attribution.score_totals import encode_values, require_metadata_column
from bergson_core.errors import BergsonError
from bergson_core.schemas.query import AttributionQuery
from bergson_core.schemas.results import Answer
from bergson_core.schemas.totals.results import GroupTotal, InfluenceTotals
from bergson_core.schemas.totals.spec import TotalsQuery, TotalsSpec
from bergson_core.search.exact_scores import ExactScorer
from bergson_core.search.projection_noise.intervals import ScoreError
from bergson_core.search.projection_noise.score_noise import ScoreNoise, SumOfScores
from bergson_core.utils.background import run_to_completion

_CHUNK_NUMBERS: Final = 2**22
"""Numbers of rows that are scored in a step."""
_CHUNK_ROWS: Final = 2048
"""Most rows that are scored in a step: their metadata are parsed."""
_ADDS_NOTHING: Final = -1
"""In the place of a group's number: a row that does not count, or whose score the threshold has set to 0."""


def influence_totals(index: AttributionIndex, query: TotalsQuery | Mapping[str, Any]) -> InfluenceTotals:
    """Returns the influence of all documents on a completion or a behaviour, summed by a metadata column.

    Args:
        index: The index.
        query: The question as in `AttributionIndex.query`, the column `by`, `top` and `threshold`.

    Returns:
        The groups with the largest sums, the largest first. Documents that were taken down do not count.

    Raises:
        InvalidInput: A field is wrong, or the index does not keep the column.
        BehaviourNotFound: The index has no such behaviour.
        TooLong: The query is longer than the model takes.

    Examples:
        >>> totals = influence_totals(index, {"prompt": "Ada was born in", "completion": " Rome", "by": "source"})
        >>> [(group.value, group.sum, group.interval) for group in totals.groups]
        [('wiki', 1.92, (1.31, 2.53)), ('web', -0.04, (-0.2, 0.12))]
    """
    query = TotalsQuery.model_validate(query)
    question = query.as_query()
    require_metadata_column(index, query.by)
    (answer,) = index.attribute([question])
    if isinstance(answer, BergsonError):
        raise answer
    return run_to_completion(total_influence(index, question, answer, query.spec()))


def total_influence(
    index: AttributionIndex, query: AttributionQuery, answer: Answer, spec: TotalsSpec
) -> Steps[InfluenceTotals]:
    """Sums the scores of all documents, step by step; other queries may be answered between two steps.

    Args:
        index: The index.
        query: The query (`TotalsQuery.as_query`).
        answer: The answer to this query.
        spec: How the scores are summed.

    Returns:
        A generator that yields after each step, and returns the totals.

    Raises:
        InvalidInput: At the first step: the index does not keep the column.
    """
    return with_timing(_total_influence(index, query, answer, spec), answer, "search")


@dataclass
class _GroupedRows:
    """The groups that the rows of an index form, and their sums.

    Attributes:
        column: The metadata column.
        numbers: The number of each group, by the JSON text of its value.
        sums: The sum of each group.
        counts: The number of rows of each group.
        of_rows: For each shard the number of the group of each row [n], or `_ADDS_NOTHING`.
    """

    column: str
    numbers: dict[str, int] = field(default_factory=dict)
    sums: list[float] = field(default_factory=list)
    counts: list[int] = field(default_factory=list)
    of_rows: list[Int32[np.ndarray, " _"]] = field(default_factory=list)

    def add(self, metadata: pa.ChunkedArray, scores: Float[np.ndarray, " n"]) -> Int32[np.ndarray, " n"]:
        """Adds the scores of rows with these metadata, and returns the numbers of their groups."""
        encoded = encode_values(metadata.to_pylist(), self.column)
        keys, codes = encoded.dictionary.to_pylist(), encoded.indices.to_numpy()
        known = [self.numbers.setdefault(key, len(self.numbers)) for key in keys]
        new = len(self.numbers) - len(self.sums)
        self.sums += [0.0] * new
        self.counts += [0] * new
        sums, counts = np.bincount(codes, scores, len(keys)), np.bincount(codes, minlength=len(keys))
        for number, total, count in zip(known, sums.tolist(), counts.tolist(), strict=True):
            self.sums[number] += total
            self.counts[number] += count
        return np.array(known, dtype=np.int32)[codes]

    def largest(self, count: int) -> list[int]:
        """Returns the numbers of the groups with the largest sums, the largest first."""
        return np.argsort(-np.array(self.sums), kind="stable")[:count].tolist()


def _total_influence(
    index: AttributionIndex, query: AttributionQuery, answer: Answer, spec: TotalsSpec
) -> Steps[InfluenceTotals]:
    require_metadata_column(index, spec.by)
    features = query_features(index.answerer, query, answer.query)
    yield
    rows = yield from _sum_rows(index, query, features, spec)
    chosen = rows.largest(spec.top)
    errors = yield from _estimate_errors(index, query, features, rows.of_rows, chosen)
    values = {number: json.loads(key) for key, number in rows.numbers.items() if number in errors}
    groups = [
        GroupTotal(
            value=values[number],
            documents=rows.counts[number],
            sum=rows.sums[number],
            mean=rows.sums[number] / rows.counts[number],
            interval=None if (error := errors[number]) is None else error.interval(rows.sums[number]),
        )
        for number in chosen
    ]
    return InfluenceTotals(
        **{name: getattr(answer, name) for name in ("index", "generation", "profile", "query", "warnings")},
        by=spec.by,
        threshold=spec.threshold,
        groups=groups,
        group_count=len(rows.sums),
        documents=sum(rows.counts),
        sum=sum(rows.sums),
        partial=answer.partial,
        timing_ms=answer.timing_ms,
    )


def _sum_rows(
    index: AttributionIndex, query: AttributionQuery, features: Float[Tensor, "m d"], spec: TotalsSpec
) -> Steps[_GroupedRows]:
    """Scores all rows, and returns the groups that they form."""
    profile = index.profiles[query.profile]
    weights = profile.prepare_features(features[None])[1].reshape(-1, 1)
    shrink = make_soft_threshold(index, profile, weights, spec.threshold) if spec.threshold else None
    scorer, rows = ExactScorer(index.shards, profile), _GroupedRows(spec.by)
    counted = _counted_rows(index, query)
    chunk_size = max(1, min(_CHUNK_ROWS, _CHUNK_NUMBERS // len(weights)))
    yield
    for shard_number, (shard, mask) in enumerate(zip(index.shards, counted, strict=True)):
        of_rows = np.full(shard.entry.rows, _ADDS_NOTHING, dtype=np.int32)
        for start in range(0, shard.entry.rows, chunk_size):
            stop = min(start + chunk_size, shard.entry.rows)
            offsets = start + np.flatnonzero(mask[start:stop])
            if not len(offsets):
                continue
            scores = scorer.score_range(shard_number, slice(start, stop), weights)
            scores = (scores if shrink is None else shrink(scores)).numpy()[offsets - start, 0]
            numbers = rows.add(shard.documents["metadata"].take(pa.array(offsets)), scores)
            of_rows[offsets] = np.where(scores == 0, _ADDS_NOTHING, numbers)
            yield
        rows.of_rows.append(of_rows)
    return rows


def _counted_rows(index: AttributionIndex, query: AttributionQuery) -> list[Bool[np.ndarray, " _"]]:
    """Returns for each shard which of its rows count: they meet the filter, and were not taken down."""
    allowed = index.searcher.allowed_rows(query.filter)
    return [
        np.ones(shard.entry.rows, dtype=bool) if mask is None else mask
        for shard, mask in zip(index.shards, allowed, strict=True)
    ]


def _estimate_errors(
    index: AttributionIndex,
    query: AttributionQuery,
    features: Float[Tensor, "m d"],
    of_rows: Sequence[Int32[np.ndarray, " _"]],
    chosen: Sequence[int],
) -> Steps[dict[int, ScoreError | None]]:
    """Returns the error of the sum of each chosen group.

    It is None where rows do not show their noise, and where no score of the group is another than 0.
    """
    noise = ScoreNoise.of(index.manifest)
    if noise is None:
        return dict.fromkeys(chosen)
    scorer = ExactScorer(index.shards, index.profiles[query.profile])
    sums = {number: SumOfScores(noise, is_sum=query.behaviour is not None) for number in chosen}
    for shard_number, numbers in enumerate(of_rows):
        for number in np.intersect1d(numbers, chosen).tolist():
            offsets = np.flatnonzero(numbers == number)
            for rows in scorer.iter_features(np.full(len(offsets), shard_number), offsets):
                sums[number].add(rows, features)
                yield
    return {number: total.error() if total.rows else None for number, total in sums.items()}
