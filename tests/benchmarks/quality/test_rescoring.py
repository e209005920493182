"""Rescoring puts the candidates in the order of their exact scores, and nothing else before them."""

from pathlib import Path

import numpy as np
import pytest

from benchmarks.quality import rescoring
from benchmarks.quality.methods import RECOMMENDED, SMALL_ROWS
from benchmarks.quality.rescoring import first_kept, iter_rescored, rescore, rescored_name
from benchmarks.quality.unprojected import unprojected_products
from tests.benchmarks.quality.helpers import make_tiny_experiment


def test_candidates_stand_in_the_order_of_their_exact_scores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rescoring, "RESCORED", 3)
    scores, exact = np.array([[4.0, 3.0, 2.0, 1.0, 0.0]]), np.array([[-5.0, 1.0, 3.0, 9.0, 9.0]])
    rescored = rescore(scores, exact)
    assert np.argsort(-rescored[0], kind="stable").tolist() == [2, 1, 0, 3, 4]
    assert rescored[0, :3].tolist() == exact[0, :3].tolist()


def test_the_share_that_stays_is_of_the_first_ten() -> None:
    scores = np.arange(40.0)[None].repeat(2, axis=0)
    other = scores.copy()
    other[1, :12] += 100
    assert first_kept(scores, other).tolist() == [1.0, 0.0]
    other[1, :12] -= 100
    other[1, :4] += 100
    assert first_kept(scores, other).tolist() == [1.0, 0.6]


def test_rescored_rows_have_the_scores_of_whole_gradients(tmp_path: Path) -> None:
    experiment = make_tiny_experiment(tmp_path)
    shape = len(experiment.case.queries), len(experiment.case.documents)
    tables = {SMALL_ROWS: np.zeros(shape), RECOMMENDED: np.zeros(shape)}
    rescored = {method.name: method.scores for method in iter_rescored(experiment, tables)}
    assert set(rescored) == {rescored_name(SMALL_ROWS), rescored_name(RECOMMENDED)}
    cosines = unprojected_products(experiment, ["kfac"])["kfac"].scores("block").numpy()
    assert np.array_equal(rescored[rescored_name(SMALL_ROWS)], cosines)
