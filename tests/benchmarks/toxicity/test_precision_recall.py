"""The area under the curve is that of DATE-LM's evaluator, and its interval is over seeds and references."""

from itertools import pairwise

import numpy as np
import pytest

from benchmarks.toxicity.precision_recall import AGGREGATIONS, SeedTable, auprc, measure_auprc

MEAN = AGGREGATIONS["mean"]


def area_by_thresholds(scores: np.ndarray, positive: np.ndarray) -> float:
    """Follows the documentation of scikit-learn: a point for each distinct score, and (recall 0, precision 1)."""
    points = [(0.0, 1.0)]
    for threshold in sorted(set(scores), reverse=True):
        chosen = scores >= threshold
        hits = (chosen & positive).sum()
        points.append((hits / positive.sum(), hits / chosen.sum()))
    return sum((b[0] - a[0]) * (a[1] + b[1]) / 2 for a, b in pairwise(points))


@pytest.mark.parametrize("distinct", [1, 2, 7, 1000])
@pytest.mark.parametrize("seed", range(5))
def test_the_area_is_that_of_the_definition_whatever_scores_are_equal(seed: int, distinct: int) -> None:
    rng = np.random.default_rng(seed)
    scores = rng.integers(distinct, size=60) / distinct - 0.5
    positive = rng.permutation(np.arange(60) < 1 + 5 * seed)
    assert auprc(scores, positive) == pytest.approx(area_by_thresholds(scores, positive))


def test_the_example_of_scikit_learn_has_its_area() -> None:
    # precision [1/2, 2/3, 1/2, 1, 1] at recall [1, 1, 1/2, 1/2, 0]
    area = auprc(np.array([0.1, 0.4, 0.35, 0.8]), np.array([False, False, True, True]))
    assert area == pytest.approx(0.5 * 1 + 0.5 * (1 / 2 + 2 / 3) / 2)


def test_the_best_order_has_an_area_of_one_and_equal_scores_have_more_than_the_share() -> None:
    positive = np.arange(10) < 2
    assert auprc(-np.arange(10.0), positive) == pytest.approx(1)
    assert auprc(np.zeros(10), positive) == pytest.approx((1 + 0.2) / 2)


def tables(*signals: float) -> list[SeedTable]:
    """Returns tables of five references and forty rows, in which four harmful rows stand out by a signal."""
    rng = np.random.default_rng(1)
    harmful = np.arange(40) % 10 == 0
    return [SeedTable(rng.standard_normal((5, 40)) + signal * harmful, harmful) for signal in signals]


def test_the_value_is_the_mean_over_seeds_of_all_references() -> None:
    given = tables(0.5, 2.0)
    for aggregate in AGGREGATIONS.values():
        expected = np.mean([auprc(aggregate(table.scores), table.harmful) for table in given])
        assert measure_auprc(given, aggregate, 20).value == pytest.approx(expected)


def test_a_method_that_is_the_same_everywhere_has_no_interval() -> None:
    harmful = np.arange(40) < 4
    interval = measure_auprc([SeedTable(np.tile(harmful * 1.0, (5, 1)), harmful)] * 3, MEAN, 20).interval()
    assert (interval.mean, interval.low, interval.high) == (1, 1, 1)


def test_seeds_that_differ_widen_the_interval() -> None:
    def width(given: list[SeedTable]) -> float:
        interval = measure_auprc(given, MEAN, 200).interval()
        return interval.high - interval.low

    assert width(tables(0, 9)) > 2 * width(tables(9, 9))


def test_methods_are_compared_on_the_same_draws() -> None:
    given = tables(0.3, 0.6, 0.9)
    scaled = [SeedTable(2 * table.scores + 1, table.harmful) for table in given]
    difference = measure_auprc(given, MEAN, 50) - measure_auprc(scaled, MEAN, 50)
    assert np.abs(difference.resamples).max() == 0
