"""The recall of answers that a running service gave, measured against the exact scores of an index.

Legend: q queries, n documents of a batch.
"""

from collections.abc import Sequence
from typing import Final

import numpy as np

from bergson_core.attribution.index import AttributionIndex
from bergson_core.errors import InvalidInput
from bergson_core.evaluation.queries import EvaluationQuery
from bergson_core.evaluation.score_tables import iter_score_batches

DEPTH: Final = 10
"""Number of documents that are looked at, of an answer and of the exact ranking."""
_RELATIVE_TOLERANCE: Final = 1e-4
"""Difference that rounding may make to a score: another process may have added in another order."""


def recall_of_answers(
    index: AttributionIndex, queries: Sequence[EvaluationQuery], answers: Sequence[Sequence[str]]
) -> float:
    """Computes recall@10 of answers: the share of the ten best documents that are among the first ten of an answer.

    The ten best documents are found from the exact scores of all visible documents. A document that scores as high as
    the tenth counts as one of the ten best, since a corpus may contain a document twice.

    Args:
        index: The index that was asked.
        queries: The queries that were asked.
        answers: For each query, the ids of the documents in its answer, best first.

    Returns:
        The mean over queries, between 0 and 1.

    Raises:
        InvalidInput: There are no queries, or the index has no documents.
    """
    answered_ids = [frozenset(ids[:DEPTH]) for ids in answers]
    all_answered_ids = frozenset().union(*answered_ids)
    best_scores = np.full((len(queries), 0), -np.inf)
    scores_by_id: dict[str, np.ndarray] = {}
    for ids, scores in iter_score_batches(index, queries):
        best_scores = np.sort(np.concatenate([best_scores, scores], axis=1), axis=1)[:, -DEPTH:]
        scores_by_id |= {
            document_id: scores[:, position]
            for position, document_id in enumerate(ids)
            if document_id in all_answered_ids
        }
    if not best_scores.shape[1]:
        raise InvalidInput(f"{index.name} has no documents to find")
    thresholds = best_scores[:, 0] - _RELATIVE_TOLERANCE * np.abs(best_scores[:, 0])
    hits = [
        sum(
            document_id in scores_by_id and scores_by_id[document_id][number] >= thresholds[number]
            for document_id in ids
        )
        for number, ids in enumerate(answered_ids)
    ]
    return float(np.mean(hits)) / best_scores.shape[1]
