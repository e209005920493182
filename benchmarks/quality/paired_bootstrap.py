"""Means over queries with 95 % intervals, and intervals of differences and quotients of two methods on the same draws.

Legend: q queries, n documents, M models that were trained again, h = M // 2 of them, R resamples.

Two methods are measured on the same queries and runs, so that most of the spread of one is that of the other too. Their
difference is therefore taken in each resample, where both have the same draws. All intervals are those of
`linear_datamodelling_score`: the resamples' quantiles about their own mean, moved to the value of the whole sample.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Final

import numpy as np
from jaxtyping import Bool, Float, Int

from bergson_core.evaluation.metrics import require_enough_runs
from bergson_core.schemas.evaluation import Interval

RESAMPLES: Final = 400
_QUANTILES: Final = (0.025, 0.975)


@dataclass(frozen=True)
class Resampled:
    """A number, and its values in resamples of what it was measured on.

    Attributes:
        value: The number itself.
        resamples: Its values [R].
    """

    value: float
    resamples: Float[np.ndarray, " R"]

    def interval(self) -> Interval:
        """Returns the number with its 95 % interval, which is NaN if the number was not defined in all resamples."""
        if not np.isfinite(self.resamples).all():
            return Interval(self.value, float("nan"), float("nan"))
        low, high = np.quantile(self.resamples, _QUANTILES) - self.resamples.mean()
        return Interval(self.value, self.value + float(low), self.value + float(high))

    def __sub__(self, other: "Resampled") -> "Resampled":
        """Returns the difference to a number that was measured with the same draws."""
        return Resampled(self.value - other.value, self.resamples - other.resamples)

    def __truediv__(self, other: "Resampled") -> "Resampled":
        """Returns the quotient by a number that was measured with the same draws; NaN where that is 0."""
        with np.errstate(divide="ignore", invalid="ignore"):
            value = float(np.divide(self.value, other.value))
            return Resampled(value, self.resamples / other.resamples)


def mean_over_queries(
    values: Float[np.ndarray, " q"], seed: int = 0, resamples: int = RESAMPLES
) -> Resampled:
    """Returns the mean of a value for each query. Equal numbers of queries and equal seeds give equal draws."""
    draws = np.random.default_rng(seed).integers(len(values), size=(resamples, len(values)))
    return Resampled(float(values.mean()), values[draws].mean(1))


@dataclass(frozen=True)
class DatamodellingBootstrap:
    """The linear datamodelling score of many methods, over the same resamples of queries and of runs.

    Attributes:
        subsets: True for the documents [M, n] that a run was trained on.
        losses: Losses of the queries [M, q] after each run, in nats.
        seed: Seed of the resamples.
        resamples: R.
    """

    subsets: Bool[np.ndarray, "M n"]
    losses: Float[np.ndarray, "M q"]
    seed: int = 0
    resamples: int = RESAMPLES

    def __post_init__(self) -> None:
        require_enough_runs(len(self.losses))

    def measure(self, scores: Float[np.ndarray, "q n"]) -> Resampled:
        """Returns the score of a method, as `linear_datamodelling_score` defines it."""
        predictions = self.subsets.astype(np.float64) @ scores.T.astype(np.float64)
        halves, queries = self._draws
        mean = _correlations(predictions, self._outcomes).mean()
        values = _correlations(predictions[halves], self._outcomes_of_halves)
        return Resampled(float(mean), np.take_along_axis(values, queries, axis=1).mean(1))

    @cached_property
    def _draws(self) -> tuple[Int[np.ndarray, "R h"], Int[np.ndarray, "R q"]]:
        runs, queries = self.losses.shape
        rng, halves, drawn_queries = np.random.default_rng(self.seed), [], []
        for _ in range(self.resamples):
            halves.append(rng.permutation(runs)[: runs // 2])
            drawn_queries.append(rng.integers(queries, size=queries))
        return np.array(halves), np.array(drawn_queries)

    @cached_property
    def _outcomes(self) -> Float[np.ndarray, "M q"]:
        return _centred_ranks(-self.losses)

    @cached_property
    def _outcomes_of_halves(self) -> Float[np.ndarray, "R h q"]:
        return _centred_ranks(-self.losses[self._draws[0]])


def _correlations(
    predictions: Float[np.ndarray, "*R M q"], outcome_ranks: Float[np.ndarray, "*R M q"]
) -> Float[np.ndarray, "*R q"]:
    """Returns Spearman's rank correlation over runs; 0 where all predictions of a query are equal."""
    ranks = _centred_ranks(predictions)
    norms = np.sqrt((ranks**2).sum(-2) * (outcome_ranks**2).sum(-2))
    products = (ranks * outcome_ranks).sum(-2)
    return np.divide(products, norms, out=np.zeros_like(norms), where=norms > 0)


def _centred_ranks(values: Float[np.ndarray, "*R M q"]) -> Float[np.ndarray, "*R M q"]:
    """Returns ranks over the runs less their mean; ties share their mean rank.

    A value's rank is half of how many values it exceeds, less how many exceed it.
    """
    ranks = np.zeros(values.shape)
    for run in range(values.shape[-2]):
        ranks += np.sign(values - values[..., [run], :])
    return ranks / 2
