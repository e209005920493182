"""Whether any result of a query stands out, and the calibration of the threshold from which it does.

The prominence of a score is its height above the median of the background sample's scores (`background_sample`), in
units of the height of their 99th percentile above their median. So it does not depend on the size and spread of the
scores, which differ between queries. Where the prominence of the best result is not above the threshold of the index,
the answer has the notice that no strong influence was found.

The threshold is calibrated with null queries, made-up queries that no document of the index states: the first half of
one document's tokens, followed by the second half of another's. Of four such endings for each beginning, the one that
the model finds likeliest is taken, since halves that do not fit are recognised too easily. The two documents themselves
are left out of the results, as they say what the query says. Other documents may say it too: near copies, and whatever
else is about the same thing. They are told by no rule, but few null queries have one, so that the middle of the null
queries' prominences shows what is to be expected of a query without one, and the top does not. So a Gumbel
distribution, that of the largest of many numbers, is laid through two quantiles of the middle, and the threshold is the
prominence that `FALSE_ALARM_RATE` of this distribution exceed (docs/decisions/0024-null-queries.md).

Legend: q null queries, v visible rows of the background sample, m modules, d numbers per module.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import torch
from jaxtyping import Float, Float32, Float64, Int
from torch import Tensor

from bergson_core.gradients.row_collector import RowCollector, collect_rows
from bergson_core.models.forward_backward import compute_document_losses
from bergson_core.search.background_sample import BackgroundSample
from bergson_core.search.candidates import CandidateSearch
from bergson_core.search.exact_scores import ExactScorer
from bergson_core.search.profile import Profile
from bergson_core.storage.manifest import NoticeEntry
from bergson_core.tokens.tokenization import Tokens
from bergson_core.utils.background import stop_if_abandoned

NO_INFLUENCE_NOTICE: Final = "no strong influence found"
FALSE_ALARM_RATE: Final = 0.05
"""Share of queries without an influence whose best result has a prominence above the threshold."""
ENDINGS_TRIED: Final = 4
"""Endings for the beginning of a null query, of which the likeliest is taken."""
_QUERIES_PER_DOCUMENT: Final = 4
MIN_BACKGROUND_ROWS: Final = 50
"""Smallest background sample that prominence is computed from: among fewer rows nothing can stand out."""
_FITTED_QUANTILES: Final = (0.5, 0.75)
"""Quantiles of the null queries' prominences that the Gumbel distribution is laid through."""
_MAX_CANDIDATES: Final = 4096
_QUERY_BATCH_SIZE: Final = 64


@dataclass(frozen=True)
class NullQueries:
    """Made-up queries that no document states.

    Attributes:
        rows: Raw gradient rows [q, m, d].
        sources: Numbers [q, 2] of the rows, in the index, of the two documents that each query is made of.
    """

    rows: Float[Tensor, "q m d"]
    sources: Int[np.ndarray, "q 2"]


def prominence(score: float, background_scores: Float32[np.ndarray, " v"]) -> float:
    """Returns how far a score stands out from the background: 0 at the median, 1 at the 99th percentile."""
    median, high = np.quantile(background_scores, (0.5, 0.99))
    height = score - float(median)
    return height / float(high - median) if high > median else float(np.sign(height)) * np.inf


def significance_notice(
    score: float, background_scores: Float32[np.ndarray, " v"], entry: NoticeEntry | None
) -> str | None:
    """Returns the notice of an answer whose best result does not stand out.

    Args:
        score: Score of the best result.
        background_scores: Scores of the background sample for the same query.
        entry: The calibrated threshold, or None for an index without one.

    Returns:
        `NO_INFLUENCE_NOTICE`; None where the result stands out, or where that is not known.
    """
    if entry is None or len(background_scores) < MIN_BACKGROUND_ROWS:
        return None
    return None if prominence(score, background_scores) > entry.threshold else NO_INFLUENCE_NOTICE


def collect_null_queries(
    collector: RowCollector,
    row_numbers: Sequence[int],
    documents: Sequence[Tokens],
    budget_tokens: int,
    tick: Callable[[], object] = lambda: None,
    *,
    endings_tried: int = ENDINGS_TRIED,
) -> NullQueries:
    """Collects the gradients of null queries, four for each document.

    Args:
        collector: Runs the model.
        row_numbers: Number in the index of each document's row.
        documents: Documents that null queries are made of.
        budget_tokens: Tokens of a batch, padding included.
        tick: Called between batches.
        endings_tried: Endings for each beginning, of which the likeliest is taken.

    Returns:
        The queries without those whose rows are zero or not finite. None, q = 0, where there are too few documents to
        choose endings from.
    """
    modules, count = len(collector.slices), len(documents)
    if count <= endings_tried * _QUERIES_PER_DOCUMENT:
        empty = torch.empty(0, modules, collector.dimensions // modules)
        return NullQueries(empty, np.empty((0, 2), dtype=np.int64))
    pairs = [
        (number, (number + endings_tried * round_ + step) % count)
        for round_ in range(_QUERIES_PER_DOCUMENT)
        for number in range(count)
        for step in range(1, endings_tried + 1)
    ]
    choices = [_splice(documents[beginning], documents[ending]) for beginning, ending in pairs]
    likeliest = _find_likeliest(collector, choices, budget_tokens, tick, endings_tried)
    rows, _ = collect_rows(collector, [choices[number] for number in likeliest], budget_tokens, tick)
    is_usable = np.isfinite(rows).all(1) & rows.any(1)
    sources = np.asarray(row_numbers)[np.array(pairs)[likeliest]]
    usable_rows = torch.from_numpy(rows[is_usable])
    return NullQueries(usable_rows.reshape(len(usable_rows), modules, -1), sources[is_usable])


def _splice(document: Tokens, other: Tokens) -> Tokens:
    """Returns the first half of one document, followed by the second half of another, which alone is labelled."""
    beginning, ending = document.ids[: len(document.ids) // 2], other.ids[len(other.ids) // 2 :]
    return Tokens.labelled_from(np.concatenate([beginning, ending]), max(1, len(beginning)))


def _find_likeliest(
    collector: RowCollector,
    choices: Sequence[Tokens],
    budget_tokens: int,
    tick: Callable[[], object],
    endings_tried: int,
) -> Int[np.ndarray, " q"]:
    """Returns of each run of `endings_tried` choices the position of the one with the smallest loss a token."""
    losses = compute_document_losses(collector.model, choices, budget_tokens, tick)
    labelled = np.array([choice.n_labelled for choice in choices])
    loss_a_token = np.where(labelled > 0, losses / np.maximum(labelled, 1), np.inf)
    first_choices = endings_tried * np.arange(len(choices) // endings_tried)
    return loss_a_token.reshape(-1, endings_tried).argmin(1) + first_choices


def calibrate_notice(
    queries: NullQueries,
    profile: Profile,
    candidate_search: CandidateSearch,
    candidate_count: int,
    background: BackgroundSample,
) -> NoticeEntry | None:
    """Calibrates the threshold of the notice.

    The best row of an index of sign rows may need more candidates than the 4,096 that are looked at here at most, which
    lowers the threshold a little.

    Args:
        queries: The null queries.
        profile: The default profile.
        candidate_search: Finds the candidates of a null query.
        candidate_count: How many candidates to find.
        background: The background sample of the index.

    Returns:
        The threshold; None where there are too few null queries or sampled rows to calibrate it, or where the rows are
        so alike that none stands out.
    """
    if len(queries.rows) == 0 or len(background.offsets) < MIN_BACKGROUND_ROWS:
        return None
    first_rows = np.array([shard.entry.first_row for shard in candidate_search.shards])
    background_numbers = first_rows[background.shard_numbers] + background.offsets
    scorer = ExactScorer(candidate_search.shards, profile)
    prominences = []
    for start in range(0, len(queries.rows), _QUERY_BATCH_SIZE):
        batch = slice(start, start + _QUERY_BATCH_SIZE)
        phi, weights = profile.prepare_queries(queries.rows[batch])
        background_scores = background.scores(profile, weights, [None] * len(first_rows))
        candidates = candidate_search.find(phi, min(candidate_count, _MAX_CANDIDATES))
        for query_weights, sources, shard_numbers, offsets, scores in zip(
            weights, queries.sources[batch], *candidates, background_scores, strict=True
        ):
            stop_if_abandoned()
            is_other = ~np.isin(first_rows[shard_numbers] + offsets, sources)
            parts = scorer.module_scores(query_weights, shard_numbers[is_other], offsets[is_other])
            is_background = ~np.isin(background_numbers, sources)
            prominences.append(prominence(float(parts.sum(1).max()), scores[is_background]))
    threshold = extrapolate_threshold(np.array(prominences))
    if not np.isfinite(threshold):
        return None
    return NoticeEntry(threshold=threshold, false_alarms=FALSE_ALARM_RATE, queries=len(prominences))


def extrapolate_threshold(prominences: Float64[np.ndarray, " q"]) -> float:
    """Returns what `FALSE_ALARM_RATE` of the Gumbel distribution exceed that fits the middle of these prominences.

    Args:
        prominences: Prominence of the best result of each null query.
    """
    # The quantiles are values that occur, as the mean of two infinite ones is not a number.
    low, high = np.quantile(prominences, _FITTED_QUANTILES, method="higher")
    if not np.isfinite([low, high]).all():
        return np.inf
    reduced_low, reduced_high, reduced_threshold = (
        -np.log(-np.log(share)) for share in (*_FITTED_QUANTILES, 1 - FALSE_ALARM_RATE)
    )
    factor = (reduced_threshold - reduced_low) / (reduced_high - reduced_low)
    return float(low + factor * (high - low))
