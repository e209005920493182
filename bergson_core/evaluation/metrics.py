"""Metrics of rankings and scores: retrieval of gold documents, bootstrap means, and the linear datamodelling score.

A ranking lists document ids, best first. The gold documents of a query are the documents that are right for it.

Legend: q queries, n documents, M training runs.
"""

from collections.abc import Collection, Mapping, Sequence
from typing import Final

import numpy as np
from jaxtyping import Bool, Float

from bergson_core.errors import InvalidInput
from bergson_core.schemas.evaluation import Interval, Retrieval

MIN_TRAINING_RUNS: Final = 10
"""Smallest number of runs for a rank correlation. With fewer, the standard error of a query's correlation is a third or
more."""
_BOOTSTRAP_RESAMPLES: Final = 1000
_LDS_RESAMPLES: Final = 200
_INTERVAL_QUANTILES: Final = (0.025, 0.975)


def retrieval_metrics(
    rankings: Mapping[str, Sequence[str]], gold: Mapping[str, Collection[str]]
) -> Retrieval:
    """Computes MRR, recall and strict recall of rankings.

    Args:
        rankings: For each query id, document ids, best first. A query without an answer has an empty ranking and counts
            as zero.
        gold: For each query id, the ids of its gold documents.

    Returns:
        Means over the queries in `rankings`.

    Raises:
        InvalidInput: There are no queries, a query has no gold documents, or a ranking names a document twice.
    """
    if not rankings:
        raise InvalidInput("there are no rankings to measure; expected at least one query")
    rows = []
    for query, ranking in rankings.items():
        gold_ids = set(gold.get(query, ()))
        if not gold_ids:
            raise InvalidInput(f"query {query!r} has no gold documents; expected at least one")
        if len(set(ranking)) != len(ranking):
            raise InvalidInput(f"the ranking of query {query!r} names a document twice; expected each once")
        first_rank = next((rank for rank, document in enumerate(ranking, 1) if document in gold_ids), None)
        hits = len(gold_ids.intersection(ranking[:10]))
        rows.append((1 / first_rank if first_rank else 0.0, float(hits > 0), hits / min(10, len(gold_ids))))
    mrr, recall, strict_recall = (sum(column) / len(rows) for column in zip(*rows, strict=True))
    return Retrieval(mrr, recall, strict_recall, len(rows))


def bootstrap_interval(values: Float[np.ndarray, " q"], seed: int = 0) -> Interval:
    """Returns the mean of one value for each query, with a 95 % bootstrap interval over queries.

    Raises:
        InvalidInput: There are no values.

    Source: Efron, Bootstrap Methods: Another Look at the Jackknife (1979).
    """
    if len(values) == 0:
        raise InvalidInput("there are no values to average; expected at least one query")
    resamples = np.random.default_rng(seed).integers(len(values), size=(_BOOTSTRAP_RESAMPLES, len(values)))
    low, high = np.quantile(values[resamples].mean(1), _INTERVAL_QUANTILES)
    return Interval(float(values.mean()), float(low), float(high))


def linear_datamodelling_score(
    scores: Float[np.ndarray, "q n"],
    subsets: Bool[np.ndarray, "M n"],
    losses: Float[np.ndarray, "M q"],
    seed: int = 0,
) -> Interval:
    """Computes how well sums of scores predict the losses of models that were trained on subsets of the documents.

    For each query, this is the Spearman rank correlation over runs between the sum of the scores of the documents that
    a run was trained on and the negative loss after it; then the mean over queries. The correlation of a query whose
    sums are all equal is 0, since nothing was predicted.

    The interval covers the choice of queries and of runs: each resample draws queries with replacement and half of the
    runs without replacement. The spread of such halves about the value of all runs equals the spread of that value
    about the true one.

    Args:
        scores: Score of each document with each query.
        subsets: True for the documents that a run was trained on.
        losses: Loss of each query after each run, in nats.
        seed: Seed of the resamples.

    Returns:
        The mean over queries, between -1 and 1, with a 95 % interval.

    Raises:
        InvalidInput: There are fewer than `MIN_TRAINING_RUNS` runs, or a score or loss is not finite.

    Source: Park et al., TRAK, arXiv 2303.14186, section 2.1.
    """
    runs, queries = losses.shape
    require_enough_runs(runs)
    if not np.isfinite(losses).all() or not np.isfinite(scores).all():
        raise InvalidInput("scores or losses are not finite; expected numbers")
    predictions = subsets.astype(np.float64) @ scores.T.astype(np.float64)
    mean = float(_rank_correlations(predictions, -losses).mean())
    rng, resampled_means = np.random.default_rng(seed), []
    for _ in range(_LDS_RESAMPLES):
        half = rng.permutation(runs)[: runs // 2]
        chosen = rng.integers(queries, size=queries)
        resampled_means.append(_rank_correlations(predictions[half], -losses[half])[chosen].mean())
    low, high = np.quantile(resampled_means, _INTERVAL_QUANTILES) - np.mean(resampled_means)
    return Interval(mean, mean + float(low), mean + float(high))


def require_enough_runs(runs: int) -> None:
    """Raises `InvalidInput` if there are fewer than `MIN_TRAINING_RUNS` training runs."""
    if runs < MIN_TRAINING_RUNS:
        raise InvalidInput(
            f"{runs} training runs are too few for a rank correlation: expected at least {MIN_TRAINING_RUNS}, better 40"
        )


def _rank_correlations(
    predictions: Float[np.ndarray, "M q"], outcomes: Float[np.ndarray, "M q"]
) -> Float[np.ndarray, " q"]:
    """Returns Spearman's rank correlation of each column; ties share their mean rank, a constant column gives 0."""
    import pandas as pd

    ranks = [np.asarray(pd.DataFrame(values).rank(), dtype=np.float64) for values in (predictions, outcomes)]
    a, b = (values - values.mean(0) for values in ranks)
    norms = np.sqrt((a * a).sum(0) * (b * b).sum(0))
    return np.divide((a * b).sum(0), norms, out=np.zeros_like(norms), where=norms > 0)
