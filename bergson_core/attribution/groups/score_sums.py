"""The sum of the scores of some documents for a query, with its interval.

Legend: k documents. The number of a document is that of its row in the index.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Int

from bergson_core.attribution.follow_up.query_features import query_features
from bergson_core.attribution.index import AttributionIndex
from bergson_core.errors import BergsonError, InvalidInput
from bergson_core.schemas.query import AttributionQuery
from bergson_core.search.exact_scores import ExactScorer
from bergson_core.search.projection_noise.score_noise import ScoreNoise, SumOfScores


@dataclass(frozen=True)
class ScoreSum:
    """The sum of the scores of some documents.

    Attributes:
        documents: How many documents there are.
        score: The sum of their scores.
        interval: (low, high): where the sum lies on average over all random projections, in nine of ten cases. None
            where the rows of the index do not show their noise.
    """

    documents: int
    score: float
    interval: tuple[float, float] | None


def sum_scores(
    index: AttributionIndex, query: AttributionQuery | Mapping[str, Any], numbers: Sequence[int]
) -> ScoreSum:
    """Returns the sum of the scores of documents for a query, with its interval.

    The errors of the scores go together, since all documents and the query share the random projections. So the
    interval of the sum does not follow from those of the scores. It is that of a group that was chosen before its
    scores were known: the first results of a query are the first by chance too.

    Args:
        index: The index.
        query: The query, or its fields.
        numbers: Numbers of the documents (`find_document_numbers`). A number that stands twice counts once.

    Raises:
        InvalidInput: The query is wrong, or no document has one of the numbers.
        TooLong: The query is longer than the model takes.

    Example:
        >>> numbers = find_document_numbers(index, ["doc-17", "doc-40"])
        >>> sum_scores(index, {"prompt": "Ada was born in", "completion": " London"}, numbers).interval
        (0.41, 0.78)
    """
    query = AttributionQuery.model_validate(query)
    shard_numbers, offsets = _locate(index, numbers)
    # Asking for one result checks the query, and generates the completion where there is none.
    (answer,) = index.attribute([query.for_search().model_copy(update={"top_k": 1, "include": ()})])
    if isinstance(answer, BergsonError):
        raise answer
    features = query_features(index.answerer, query, answer.query)
    scorer = ExactScorer(index.shards, index.profiles[query.profile])
    noise, total, score = ScoreNoise.of(index.manifest), None, 0.0
    if noise is not None:
        total = SumOfScores(noise, is_sum=query.behaviour is not None)
    for rows in scorer.iter_features(shard_numbers, offsets):
        score += float((rows * features).sum())
        if total is not None:
            total.add(rows, features)
    return ScoreSum(len(offsets), score, total and total.error().interval(score))


def _locate(
    index: AttributionIndex, numbers: Sequence[int]
) -> tuple[Int[np.ndarray, " k"], Int[np.ndarray, " k"]]:
    """Returns (shard numbers, offsets) of documents. Raises `InvalidInput` if there is no document of a number."""
    distinct = np.array(list(dict.fromkeys(numbers)), dtype=np.int64)
    first_rows = np.array([shard.entry.first_row for shard in index.shards])
    last_rows = first_rows + [shard.entry.rows for shard in index.shards]
    shard_numbers = np.searchsorted(first_rows, distinct, side="right") - 1
    missing = distinct[(shard_numbers < 0) | (distinct >= last_rows[shard_numbers])]
    if missing.size:
        raise InvalidInput(
            f"{index.name} has no document {missing[0]}: expected numbers that find_document_numbers returns"
        )
    return shard_numbers, distinct - first_rows[shard_numbers]
