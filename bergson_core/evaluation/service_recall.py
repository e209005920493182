"""How many of the best rows of an index are in answers that somebody else gave.

Legend: q queries, n documents at a time.
"""

from collections.abc import Sequence

import numpy as np

from bergson_core.attribution.index import AttributionIndex
from bergson_core.errors import InvalidInput
from bergson_core.evaluation.ground_truth import iterate_scores
from bergson_core.evaluation.queries import EvaluationQuery

DEPTH = 10
_ROUNDING = 1e-4
"""Of a score, relative: another process may have added in another order."""


def recall_of_answers(
    index: AttributionIndex, queries: Sequence[EvaluationQuery], answers: Sequence[Sequence[str]]
) -> float:
    """Share of each query's ten best documents that are among the first ten ids of its answer, on average.

    The truth are the exact scores of all documents that are shown. A document as good as the tenth counts as found,
    since a corpus may hold one twice. Raises `InvalidInput` without queries or documents.
    """
    wanted = [frozenset(ids[:DEPTH]) for ids in answers]
    every = frozenset().union(*wanted)
    best = np.full((len(queries), 0), -np.inf)
    theirs: dict[str, np.ndarray] = {}
    for ids, scores in iterate_scores(index, queries):
        both = np.concatenate([best, scores], axis=1)
        best = np.sort(both, axis=1)[:, -DEPTH:]
        theirs |= {one: scores[:, at] for at, one in enumerate(ids) if one in every}
    if not best.shape[1]:
        raise InvalidInput(f"{index.name} has no documents to find")
    least = best[:, 0] - _ROUNDING * np.abs(best[:, 0])
    found = [
        sum(one in theirs and theirs[one][query] >= least[query] for one in ids)
        for query, ids in enumerate(wanted)
    ]
    return float(np.mean(found)) / best.shape[1]
