"""The area under the curve of precision over recall, as DATE-LM measures it, and its spread over references and seeds.

Legend: r references, n rows, S seeds, R resamples.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from jaxtyping import Bool, Float

from benchmarks.quality.paired_bootstrap import RESAMPLES, Resampled

Aggregation = Callable[[Float[np.ndarray, "r n"]], Float[np.ndarray, " n"]]
AGGREGATIONS: Final[Mapping[str, Aggregation]] = {
    "mean": lambda scores: scores.mean(0),
    "max": lambda scores: scores.max(0),
}
"""How a row's scores with the references become one, as `bergson score --aggregate` has it. DATE-LM takes the mean."""


def auprc(scores: Float[np.ndarray, " n"], positive: Bool[np.ndarray, " n"]) -> float:
    """Returns the area under the curve of precision over recall, whose points are joined by straight lines.

    This is `sklearn.metrics.auc` of `precision_recall_curve`, which DATE-LM's evaluator computes, and not the average
    precision. Rows with equal scores are one point of the curve. The curve begins at recall 0 with precision 1.

    Args:
        scores: A score for each row, higher for rows that are more likely positive.
        positive: True for the rows that are to be found, at least one.
    """
    order = np.argsort(-scores, kind="stable")
    ends = np.append(np.flatnonzero(np.diff(scores[order])), len(scores) - 1)
    hits = np.cumsum(positive[order])[ends]
    precision = np.concatenate([[1.0], hits / (1 + ends)])
    recall = np.concatenate([[0.0], hits / positive.sum()])
    return float((np.diff(recall) * (precision[1:] + precision[:-1]) / 2).sum())


@dataclass(frozen=True)
class SeedTable:
    """Scores that a method gives in one corpus.

    Attributes:
        scores: Score of each row with each reference [r, n].
        harmful: True for the harmful rows [n].
    """

    scores: Float[np.ndarray, "r n"]
    harmful: Bool[np.ndarray, " n"]


def measure_auprc(
    tables: Sequence[SeedTable], aggregation: Aggregation, resamples: int = RESAMPLES
) -> Resampled:
    """Returns the mean AUPRC over corpora of several seeds, with resamples of the seeds and of the references of each.

    Equal numbers of seeds and references give equal draws, so that methods may be compared in each resample.

    Args:
        tables: Scores in the corpus of each seed.
        aggregation: Makes one score of those with all references.
        resamples: R.
    """
    rng, values = np.random.default_rng(0), []
    for _ in range(resamples):
        drawn = rng.integers(len(tables), size=len(tables))
        references = [rng.integers(len(tables[seed].scores), size=len(tables[seed].scores)) for seed in drawn]
        values.append(
            np.mean(
                [
                    auprc(aggregation(tables[seed].scores[rows]), tables[seed].harmful)
                    for seed, rows in zip(drawn, references, strict=True)
                ]
            )
        )
    value = np.mean([auprc(aggregation(table.scores), table.harmful) for table in tables])
    return Resampled(float(value), np.array(values))
