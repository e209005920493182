"""Intervals of means, differences and quotients agree with a direct computation over the same draws."""

import numpy as np
import pandas as pd
import pytest

from benchmarks.quality.paired_bootstrap import DatamodellingBootstrap, Resampled, mean_over_queries
from bergson_core.errors import InvalidInput
from bergson_core.evaluation.metrics import linear_datamodelling_score
from bergson_core.evaluation.retraining import random_subsets

RUNS, QUERIES, DOCUMENTS, RESAMPLES = 13, 7, 30, 200


@pytest.fixture
def run_results() -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Halves, losses that depend on them, and two tables of scores, one of which has a query that knows nothing."""
    rng = np.random.default_rng(5)
    subsets = np.array(random_subsets(DOCUMENTS, RUNS, 0.5, 1))
    truth = rng.standard_normal((QUERIES, DOCUMENTS))
    losses = -(subsets @ truth.T) + rng.standard_normal((RUNS, QUERIES))
    good, poor = (truth + noise * rng.standard_normal(truth.shape) for noise in (0.5, 1))
    poor[3] = 0
    return subsets, losses, good, poor


def spearman(a: np.ndarray, b: np.ndarray) -> float:
    """Returns the rank correlation of two columns, by pandas."""
    value = pd.Series(a).corr(pd.Series(b), method="pearson") if len(set(a)) > 1 else 0.0
    return float(value)


def direct_values(subsets: np.ndarray, losses: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """Returns the linear datamodelling score of each resample, one correlation at a time."""
    rng, values = np.random.default_rng(0), []
    predictions = subsets @ scores.T
    for _ in range(RESAMPLES):
        half = rng.permutation(RUNS)[: RUNS // 2]
        chosen = rng.integers(QUERIES, size=QUERIES)
        correlations = [
            spearman(
                pd.Series(predictions[half, query]).rank().to_numpy(),
                pd.Series(-losses[half, query]).rank().to_numpy(),
            )
            for query in chosen
        ]
        values.append(np.mean(correlations))
    return np.array(values)


def test_the_interval_of_one_method_is_that_of_the_linear_datamodelling_score(run_results) -> None:
    subsets, losses, *tables = run_results
    bootstrap = DatamodellingBootstrap(subsets, losses, seed=4, resamples=RESAMPLES)
    for scores in tables:
        expected = linear_datamodelling_score(scores, subsets, losses, seed=4)
        interval = bootstrap.measure(scores).interval()
        assert (interval.mean, interval.low, interval.high) == pytest.approx(
            (expected.mean, expected.low, expected.high), abs=1e-12
        )


def test_differences_and_quotients_are_taken_in_each_resample(run_results) -> None:
    subsets, losses, good, poor = run_results
    bootstrap = DatamodellingBootstrap(subsets, losses, resamples=RESAMPLES)
    a, b = bootstrap.measure(good), bootstrap.measure(poor)
    direct_a, direct_b = (direct_values(subsets, losses, scores) for scores in (good, poor))
    for pair, direct in (((a - b), direct_a - direct_b), ((a / b), direct_a / direct_b)):
        np.testing.assert_allclose(pair.resamples, direct, atol=1e-12)
        low, high = np.quantile(direct, (0.025, 0.975)) - direct.mean()
        interval = pair.interval()
        assert (interval.low, interval.high) == pytest.approx((pair.value + low, pair.value + high))


def test_a_method_differs_from_itself_by_nothing_and_is_all_of_itself(run_results) -> None:
    subsets, losses, good, _ = run_results
    measured = DatamodellingBootstrap(subsets, losses, resamples=RESAMPLES).measure(good)
    assert (measured - measured).interval() == (measured - measured).interval().__class__(0, 0, 0)
    quotient = (measured / measured).interval()
    assert (quotient.mean, quotient.low, quotient.high) == pytest.approx((1, 1, 1))


def test_means_over_queries_have_the_same_draws() -> None:
    values = np.random.default_rng(2).standard_normal(40)
    shifted = mean_over_queries(values + 3) - mean_over_queries(values)
    np.testing.assert_allclose(shifted.resamples, 3)
    assert mean_over_queries(values).value == pytest.approx(values.mean())


def test_a_quotient_by_nothing_is_not_a_number() -> None:
    nothing = Resampled(0.0, np.zeros(4))
    assert np.isnan((nothing / nothing).value)


def test_too_few_runs_are_an_error() -> None:
    with pytest.raises(InvalidInput, match="too few"):
        DatamodellingBootstrap(np.ones((3, 5), dtype=bool), np.zeros((3, 2)))
