"""Other ways to calibrate the notice, and what they would claim, from the scores of all documents.

Legend: q queries, n documents of the index, m modules, d numbers per module. A document that is left out of a query's
results has the score NaN.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Final

import numpy as np
import torch
from jaxtyping import Bool, Float, Float32
from torch import Tensor

from benchmarks.models.cases import Case
from benchmarks.support.notice_queries import STRANGERS, NoticeQuery
from bergson_core import AttributionIndex
from bergson_core.gradients.processor_fitting import sample_row_numbers
from bergson_core.gradients.row_collector import collect_rows
from bergson_core.indexing.build_context import ignore_progress
from bergson_core.search.exact_scores import ExactScorer
from bergson_core.search.measuring.null_queries import QuerySources, collect_null_queries
from bergson_core.search.measuring.significance import FALSE_ALARM_RATE, extrapolate_threshold
from bergson_core.tokens.batching import BUDGET_TOKENS
from bergson_core.tokens.tokenization import Tokens, tokenize

NULL_DOCUMENTS: Final = 256
Scores = Float32[np.ndarray, "q n"]
Statistic = Callable[[Scores], Float[np.ndarray, " q"]]


def prominences(scores: Scores, quantile: float = 0.99) -> Float[np.ndarray, " q"]:
    """Returns the height of the best score above the median, in units of the height of a quantile."""
    median, high = np.nanquantile(scores, (0.5, quantile), axis=1)
    return (np.nanmax(scores, 1) - median) / (high - median)


def robust_z(scores: Scores) -> Float[np.ndarray, " q"]:
    """Returns the height of the best score above the median, in units of the median absolute deviation."""
    median = np.nanmedian(scores, axis=1, keepdims=True)
    heights = scores - median
    return np.nanmax(heights, 1) / np.nanmedian(np.abs(heights), axis=1)


STATISTICS: Mapping[str, Statistic] = {
    "prominence": prominences,
    "prominence by the 95th percentile": lambda scores: prominences(scores, 0.95),
    "prominence by the 99.9th percentile": lambda scores: prominences(scores, 0.999),
    "best score": lambda scores: np.nanmax(scores, 1),
    "robust z of the best": robust_z,
    "best / tenth best": lambda scores: scores.max(1) / np.sort(scores, axis=1)[:, -10],
}
"""Statistics of a query's scores that may tell whether the best one stands out."""


def extrapolate(values: Float[np.ndarray, " q"], low: float, high: float) -> float:
    """Returns the threshold by the Gumbel distribution that has these two quantiles of the values."""
    reduced_low, reduced_high, reduced = (
        -np.log(-np.log(share)) for share in (low, high, 1 - FALSE_ALARM_RATE)
    )
    bottom, top = np.quantile(values, (low, high))
    return float(bottom + (top - bottom) * (reduced - reduced_low) / (reduced_high - reduced_low))


RULES: Mapping[str, Callable[[Float[np.ndarray, " q"]], float]] = {
    "fit from 40 to 80 %": extrapolate_threshold,
    "95 %": lambda values: float(np.quantile(values, 1 - FALSE_ALARM_RATE)),
    "from 50 and 75 %": lambda values: extrapolate(values, 0.5, 0.75),
    "from 25 and 50 %": lambda values: extrapolate(values, 0.25, 0.5),
    "from 10 and 75 %": lambda values: extrapolate(values, 0.1, 0.75),
}
"""How the threshold follows from the statistics of null queries."""


def score_rows(index: AttributionIndex, rows: Float[Tensor, "q m d"]) -> Scores:
    """Returns the score of every document with every query."""
    profile = index.profiles["default"]
    _, weights = profile.prepare_queries(rows)
    scorer = ExactScorer(index.shards, profile)
    parts = [
        scorer.score_range(number, slice(0, shard.entry.rows), weights.flatten(1).mT)
        for number, shard in enumerate(index.shards)
    ]
    return torch.cat(parts).mT.numpy()


def score_tokens(index: AttributionIndex, tokens: Sequence[Tokens]) -> Scores:
    """Returns the score of every document with every query."""
    rows, _ = collect_rows(index.collector, tokens, BUDGET_TOKENS)
    return score_rows(index, torch.from_numpy(rows).reshape(len(rows), len(index.collector.slices), -1))


def score_queries(index: AttributionIndex, queries: Sequence[NoticeQuery]) -> Scores:
    """Returns the score of every document with every query."""
    assert index.model.tokenizer is not None  # load_model always returns one
    prompts, completions = [query.prompt for query in queries], [query.completion for query in queries]
    return score_tokens(index, tokenize(index.model.tokenizer, prompts, completions, label_end=False))


def score_null_queries(index: AttributionIndex, case: Case) -> dict[str, Scores]:
    """Returns the scores of null queries of several designs: four times as many as an index is calibrated with."""
    numbers = sample_row_numbers(len(case.documents), NULL_DOCUMENTS, seed=1)
    documents = [case.documents[number] for number in numbers]
    sources = QuerySources.of_rows(index.shards, numbers, documents)
    queries = collect_null_queries(
        index.collector, sources, 4 * NULL_DOCUMENTS, BUDGET_TOKENS, ignore_progress
    )
    table = score_rows(index, queries.rows)
    scores = {"in the index": table, "left out": _leave_out(table, queries.sources)}
    halves = [Tokens.labelled_from(item.ids, max(1, len(item.ids) // 2)) for item in documents]
    scores["one document, left out"] = _leave_out(score_tokens(index, halves), np.array(numbers)[:, None])
    return scores


def print_alternatives(
    index: AttributionIndex,
    case: Case,
    queries: Mapping[str, Sequence[NoticeQuery]],
    counts: Mapping[str, Bool[np.ndarray, " q"]],
) -> None:
    """Prints the shares of queries that each way to calibrate would claim, of those that count."""
    scores = {kind: score_queries(index, asked)[counts[kind]] for kind, asked in queries.items()}
    values = {kind: prominences(table) for kind, table in scores.items()}
    print(f"\n| calibrated with | by | threshold | {' | '.join(values)} |")
    print(f"|---|---|{'---:|' * (1 + len(values))}")
    for name, table in score_null_queries(index, case).items():
        for rule, compute in RULES.items():
            _print_shares((name, rule), compute(prominences(table)), values)
    strangers = next(kind for kind in STRANGERS if kind in values)
    for name, statistic in STATISTICS.items():
        values = {kind: statistic(table) for kind, table in scores.items()}
        threshold = float(np.quantile(values[strangers], 1 - FALSE_ALARM_RATE))
        _print_shares(("oracle", name), threshold, values)
    print()


def _print_shares(
    names: tuple[str, str], threshold: float, values: Mapping[str, Float[np.ndarray, " q"]]
) -> None:
    shares = " | ".join(f"{np.mean(kind_values > threshold):.1%}" for kind_values in values.values())
    print(f"| {names[0]} | {names[1]} | {threshold:.2f} | {shares} |", flush=True)


def _leave_out(scores: Scores, sources: np.ndarray) -> Scores:
    left_out = scores.copy()
    np.put_along_axis(left_out, sources, np.nan, axis=1)
    return left_out
