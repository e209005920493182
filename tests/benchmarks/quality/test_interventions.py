"""Removal compares a query's loss without its best documents with that of runs without other queries' documents."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.quality import interventions
from benchmarks.quality.interventions import draw_groups, removal_rises
from bergson_core.errors import InvalidInput
from tests.benchmarks.quality.helpers import make_tiny_experiment

DOCUMENTS = 20  # so that the best 1 % is one document


def test_each_query_is_in_one_group_at_most() -> None:
    groups = draw_groups(queries=50, runs=4, seed=3)
    assert groups.shape == (4, 8)
    assert len(np.unique(groups)) == 32
    assert draw_groups(queries=6, runs=4, seed=0).shape == (4, 1)


@pytest.mark.parametrize(("queries", "runs"), [(10, 1), (3, 4)])
def test_too_few_runs_or_queries_are_an_error(queries: int, runs: int) -> None:
    with pytest.raises(InvalidInput, match="2 or more runs"):
        draw_groups(queries, runs, seed=0)


def test_the_rise_is_that_of_the_loss_without_the_querys_own_best_documents(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    experiment = make_tiny_experiment(tmp_path, documents=DOCUMENTS)
    teaches = np.arange(6)  # query k was taught by document k
    right, wrong = np.zeros((2, 6, DOCUMENTS))
    right[teaches, teaches] = 1
    wrong[teaches, 10 + teaches] = 1

    def losses(
        _trainer: object, subsets: list, _seeds: object, queries: list, *_: Any, **__: Any
    ) -> np.ndarray:
        noise = [0.5 * (DOCUMENTS - subset.sum()) for subset in subsets]  # a smaller corpus teaches less
        return np.array(
            [2.0 * ~subset[: len(queries)] + rise for subset, rise in zip(subsets, noise, strict=True)]
        )

    monkeypatch.setattr(interventions, "losses_after_retraining", losses)
    rises = removal_rises(experiment, {"right": right, "wrong": wrong}, runs=3)
    assert rises["right"].tolist() == [2.0] * 6
    assert rises["wrong"].tolist() == [0.0] * 6
