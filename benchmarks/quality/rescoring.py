"""Scores of rows whose best documents are scored again by whole gradients, as `rescore` of a query does it.

Legend: q queries, n documents.
"""

from collections.abc import Iterator, Mapping
from typing import Final

import numpy as np
from jaxtyping import Float

from benchmarks.quality.experiments import Experiment
from benchmarks.quality.measures import FIRST
from benchmarks.quality.methods import DEFAULT, RECOMMENDED, SMALL_ROWS, Method
from benchmarks.quality.module_sets import select_module_sets
from benchmarks.quality.unprojected import (
    Whitening,
    can_compare_whole_gradients,
    choose_whitenings,
    unprojected_products,
)
from bergson_core.evaluation.score_tables import best_positions
from bergson_core.schemas.build import Normalize

FIRST_KEPT: Final = "first_kept"
RESCORED: Final = 100
"""Candidates of a query."""
ROWS: Final[Mapping[str, tuple[Whitening, Normalize, str]]] = {
    DEFAULT: ("adafactor", "row", "all"),
    SMALL_ROWS: ("kfac", "block", "all"),
    RECOMMENDED: ("kfac", "block", "mlp"),
}
"""Name of rows → the normalizer, the normalisation of scores and the modules that an index of them has."""


def rescored_name(name: str) -> str:
    """Returns the name of a method whose best documents are scored again."""
    return f"{name}, the best {RESCORED} rescored"


def iter_rescored(experiment: Experiment, tables: Mapping[str, Float[np.ndarray, "q n"]]) -> Iterator[Method]:
    """Yields rescored methods.

    Args:
        experiment: The experiment.
        tables: Scores of the methods that were measured already, by name.
    """
    if not can_compare_whole_gradients(experiment):
        return
    sets = select_module_sets(experiment.case.model)
    whole = unprojected_products(experiment, choose_whitenings(experiment))
    for name, (whitening, normalize, set_name) in ROWS.items():
        if name in tables and whitening in whole:
            exact = whole[whitening].select(sets[set_name]).scores(normalize).numpy()
            scores = rescore(tables[name], exact)
            yield Method(rescored_name(name), "rescored", None, scores)


def rescore(scores: Float[np.ndarray, "q n"], exact: Float[np.ndarray, "q n"]) -> Float[np.ndarray, "q n"]:
    """Returns the exact scores of the best documents by `scores`, and less than the least of them for all others."""
    candidates = best_positions(scores, min(RESCORED, scores.shape[1]))
    best = np.take_along_axis(exact, candidates, axis=1)
    rescored = np.repeat(best.min(1, keepdims=True) - 1e-6, exact.shape[1], axis=1)
    np.put_along_axis(rescored, candidates, best, axis=1)
    return rescored


def first_kept(
    scores: Float[np.ndarray, "q n"], rescored: Float[np.ndarray, "q n"]
) -> Float[np.ndarray, " q"]:
    """Returns which share of a query's first ten documents are among the first ten after rescoring."""
    before, after = (best_positions(table, FIRST) for table in (scores, rescored))
    return np.array([len(set(first) & set(then)) / FIRST for first, then in zip(before, after, strict=True)])
