"""What is measured of a method's scores: the linear datamodelling score, and retrieval of what is known to be right.

Legend: q queries, n documents.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Final

import numpy as np
from jaxtyping import Bool, Float

from benchmarks.corpora.corpus import Corpus
from benchmarks.quality.experiments import Experiment
from benchmarks.quality.methods import Method
from benchmarks.quality.paired_bootstrap import (
    RESAMPLES,
    DatamodellingBootstrap,
    Resampled,
    mean_over_queries,
)
from bergson_core.attribution.soft_threshold import soft_threshold

LDS, LDS_THRESHOLDED = "lds", "lds_thresholded"
MRR, RECALL, ANTI, ANTI_LAST = "mrr", "recall_at_10", "anti_in_first_10", "anti_in_last_10"
FIRST: Final = 10
QUICK_RESAMPLES: Final = 50

Measured = Mapping[str, Resampled]
"""Name of a measure → what was measured."""


@dataclass(frozen=True, eq=False)
class Measurer:
    """Measures methods of one experiment on the same draws.

    Attributes:
        experiment: The experiment.
    """

    experiment: Experiment

    def measure(self, method: Method) -> dict[str, Resampled]:
        """Returns every measure that the experiment allows: the LDS needs runs, retrieval gold."""
        scores, measured = np.asarray(method.scores, dtype=np.float64), {}
        if len(self.experiment.losses):
            measured[LDS] = self._bootstrap.measure(scores)
            measured[LDS_THRESHOLDED] = self._bootstrap.measure(soft_threshold(scores))
        seed = self.experiment.settings.seed
        for name, values in measure_retrieval(scores, self._gold).items():
            measured[name] = mean_over_queries(values, seed)
        for name, values in measure_anti_documents(scores, self._anti).items():
            measured[name] = mean_over_queries(values, seed)
        return measured

    @cached_property
    def _bootstrap(self) -> DatamodellingBootstrap:
        experiment = self.experiment
        settings = experiment.settings
        resamples = QUICK_RESAMPLES if settings.quick else RESAMPLES
        return DatamodellingBootstrap(experiment.subsets, experiment.losses, settings.seed, resamples)

    @cached_property
    def _gold(self) -> Bool[np.ndarray, "q n"]:
        corpus, gold = self.experiment.case.corpus, self.experiment.case.corpus.gold_ids()
        return np.array(
            [[document.id in gold[query.id] for document in corpus.documents] for query in corpus.queries]
        )

    @cached_property
    def _anti(self) -> Bool[np.ndarray, "q n"]:
        return anti_documents(self.experiment.case.corpus)


def measure_retrieval(
    scores: Float[np.ndarray, "q n"], gold: Bool[np.ndarray, "q n"]
) -> dict[str, Float[np.ndarray, " _"]]:
    """Returns the reciprocal rank of the first right document, and whether one is among the first ten.

    Args:
        scores: The scores.
        gold: True for the documents that are right for a query.

    Returns:
        A value for each query that has right documents; nothing if none has.
    """
    has_gold = gold.any(1)
    if not has_gold.any():
        return {}
    order = np.argsort(-scores[has_gold], axis=1, kind="stable")
    ranks = np.take_along_axis(gold[has_gold], order, axis=1).argmax(1)
    return {MRR: 1 / (1 + ranks), RECALL: (ranks < FIRST).astype(float)}


def measure_anti_documents(
    scores: Float[np.ndarray, "q n"], anti: Bool[np.ndarray, "q n"]
) -> dict[str, Float[np.ndarray, " _"]]:
    """Returns which share of a query's anti-documents is among the first ten documents, and among the last ten.

    Args:
        scores: The scores.
        anti: True for the documents that contradict a query.

    Returns:
        A value for each query that has anti-documents; nothing if none has.
    """
    has_anti = anti.any(1)
    if not has_anti.any():
        return {}
    order = np.argsort(-scores[has_anti], axis=1, kind="stable")
    ordered = np.take_along_axis(anti[has_anti], order, axis=1)
    counts = ordered.sum(1)
    return {ANTI: ordered[:, :FIRST].sum(1) / counts, ANTI_LAST: ordered[:, -FIRST:].sum(1) / counts}


def anti_documents(corpus: Corpus) -> Bool[np.ndarray, "q n"]:
    """Returns which documents say something else about what a query asks for."""
    about = [
        document.metadata.get("about") if document.metadata.get("kind") == "anti" else None
        for document in corpus.documents
    ]
    return np.array([[fact == query.id for fact in about] for query in corpus.queries])
