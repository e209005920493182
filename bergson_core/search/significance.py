"""Whether any result of a query stands out, and the calibration of the threshold from which it does.

The prominence of a score is its height above the median of the background sample's scores (`background_sample`), in
units of the height of their 99th percentile above their median. So it does not depend on the size and spread of the
scores, which differ between queries. Where the prominence of the best result is not above the threshold of the index,
the answer has the notice that no strong influence was found.

The threshold is calibrated with null queries, made-up queries that no document of the index states: the first half of
one document's tokens, followed by the second half of another's. Of four such endings for each beginning, the one that
the model finds likeliest is taken, since halves that do not fit are recognised too easily (docs/quality.md has what was
measured). A share of 1 - `FALSE_ALARM_RATE` of the null queries stays below the threshold, so the rate of false alarms
is promised among queries like these only.

Legend: q null queries, v visible rows of the background sample, m modules, d numbers per module.
"""

from collections.abc import Callable, Sequence
from typing import Final

import numpy as np
import torch
from jaxtyping import Float, Float32
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
"""Share of null queries whose best result has a prominence above the threshold."""
ENDINGS_TRIED: Final = 4
"""Endings for the beginning of a null query, of which the likeliest is taken."""
_QUERIES_PER_DOCUMENT: Final = 4
MIN_BACKGROUND_ROWS: Final = 50
"""Smallest background sample that prominence is computed from: among fewer rows nothing can stand out."""
_MAX_CANDIDATES: Final = 4096
_QUERY_BATCH_SIZE: Final = 64


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


def collect_null_rows(
    collector: RowCollector,
    documents: Sequence[Tokens],
    budget_tokens: int,
    tick: Callable[[], object] = lambda: None,
    *,
    endings_tried: int = ENDINGS_TRIED,
) -> Float[Tensor, "q m d"]:
    """Collects the gradients of null queries, four for each document.

    Args:
        collector: Runs the model.
        documents: Documents that null queries are made of.
        budget_tokens: Tokens of a batch, padding included.
        tick: Called between batches.
        endings_tried: Endings for each beginning, of which the likeliest is taken.

    Returns:
        Raw rows [q, m, d], without those that are zero or not finite. None, q = 0, where there are too few documents to
        choose endings from.
    """
    modules, count = len(collector.slices), len(documents)
    if count <= endings_tried * _QUERIES_PER_DOCUMENT:
        return torch.empty(0, modules, collector.dimensions // modules)
    choices = [
        _splice(documents[number], documents[(number + endings_tried * round_ + step) % count])
        for round_ in range(_QUERIES_PER_DOCUMENT)
        for number in range(count)
        for step in range(1, endings_tried + 1)
    ]
    likeliest = _find_likeliest(collector, choices, budget_tokens, tick, endings_tried)
    rows, _ = collect_rows(collector, likeliest, budget_tokens, tick)
    null_rows = torch.from_numpy(rows)
    is_usable = null_rows.isfinite().all(1) & null_rows.any(1)
    return null_rows[is_usable].reshape(int(is_usable.sum()), modules, -1)


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
) -> list[Tokens]:
    """Returns of each run of `endings_tried` choices the one with the smallest loss a token."""
    losses = compute_document_losses(collector.model, choices, budget_tokens, tick)
    labelled = np.array([choice.n_labelled for choice in choices])
    loss_a_token = np.where(labelled > 0, losses / np.maximum(labelled, 1), np.inf)
    first_choices = endings_tried * np.arange(len(choices) // endings_tried)
    best = loss_a_token.reshape(-1, endings_tried).argmin(1) + first_choices
    return [choices[number] for number in best]


def calibrate_notice(
    null_rows: Float[Tensor, "q m d"],
    profile: Profile,
    candidate_search: CandidateSearch,
    candidate_count: int,
    background: BackgroundSample,
) -> NoticeEntry | None:
    """Calibrates the threshold of the notice.

    The best row of an index of sign rows may need more candidates than the 4,096 that are looked at here at most, which
    lowers the threshold a little.

    Args:
        null_rows: Raw rows [q, m, d] of null queries, from `collect_null_rows`.
        profile: The default profile.
        candidate_search: Finds the candidates of a null query.
        candidate_count: How many candidates to find.
        background: The background sample of the index.

    Returns:
        The threshold; None where there are too few null queries or sampled rows to calibrate it, or where the rows are
        so alike that none stands out.
    """
    if len(null_rows) == 0 or len(background.offsets) < MIN_BACKGROUND_ROWS:
        return None
    scorer = ExactScorer(candidate_search.shards, profile)
    prominences = []
    for batch in null_rows.split(_QUERY_BATCH_SIZE):
        phi, weights = profile.prepare_queries(batch)
        background_scores = background.scores(profile, weights, [None] * len(candidate_search.shards))
        candidates = candidate_search.find(phi, min(candidate_count, _MAX_CANDIDATES))
        for query_weights, shard_numbers, offsets, scores in zip(
            weights, *candidates, background_scores, strict=True
        ):
            stop_if_abandoned()
            best = scorer.module_scores(query_weights, shard_numbers, offsets).sum(1).max()
            prominences.append(prominence(float(best), scores))
    threshold = float(np.quantile(prominences, 1 - FALSE_ALARM_RATE, method="higher"))
    if not np.isfinite(threshold):
        return None
    return NoticeEntry(threshold=threshold, false_alarms=FALSE_ALARM_RATE, queries=len(prominences))
