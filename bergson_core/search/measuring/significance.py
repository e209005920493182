"""Whether any result of a query stands out, and the calibration of the threshold from which it does.

The prominence of a score is its height above the median of the background sample's scores (`background_sample`), in
units of the height of their 99th percentile above their median. So it does not depend on the size and spread of the
scores, which differ between queries. Where the prominence of the best result is not above the threshold of the index,
the answer has the notice that no strong influence was found.

The threshold is calibrated with null queries, made-up queries that no document of the index states (`null_queries`).
The two documents that such a query is made of are left out of the results, as they say what the query says. Other
documents may say it too: near copies, and whatever else is about the same thing. They are told by no rule, but few null
queries have one, so that the middle of the null queries' prominences shows what is to be expected of a query without
one, and the top does not. So a Gumbel distribution, that of the largest of many numbers, is fitted to the middle, and
the threshold is the prominence that `FALSE_ALARM_RATE` of this distribution exceed
(docs/decisions/0024-null-queries.md).

Legend: q null queries, v visible rows of the background sample, m modules, d numbers per module.
"""

from collections.abc import Sequence
from typing import Final

import numpy as np
import torch
from jaxtyping import Float, Float32, Float64, Int
from numpy.typing import ArrayLike
from torch import Tensor

from bergson_core.schemas.answer_parts.groups import Strength
from bergson_core.search.background_sample import BackgroundSample
from bergson_core.search.candidates import CandidateSearch
from bergson_core.search.exact_scores import ExactScorer
from bergson_core.search.measuring.null_queries import NullQueries
from bergson_core.search.profile import Profile
from bergson_core.search.projection_noise.intervals import Interval
from bergson_core.storage.manifest import NoticeEntry
from bergson_core.utils.background import stop_if_abandoned

NO_INFLUENCE_NOTICE: Final = "no strong influence found"
FALSE_ALARM_RATE: Final = 0.05
"""Share of queries without an influence whose best result has a prominence above the threshold."""
MIN_BACKGROUND_ROWS: Final = 50
"""Smallest background sample that prominence is computed from: among fewer rows nothing can stand out."""
_FITTED_RANGE: Final = (0.4, 0.8)
"""Quantiles of the null queries' prominences between which the Gumbel distribution is fitted to them."""
_STRENGTHS: Final[tuple[Strength, ...]] = ("none", "weak", "strong")
_MAX_CANDIDATES: Final = 4096
_QUERY_BATCH_SIZE: Final = 64


def prominences(scores: ArrayLike, background_scores: Float32[np.ndarray, " v"]) -> Float64[np.ndarray, " k"]:
    """Returns how far scores [k] stand out from the background: 0 at the median, 1 at the 99th percentile."""
    median, high = np.quantile(background_scores, (0.5, 0.99))
    heights = np.asarray(scores, dtype=np.float64) - float(median)
    return heights / float(high - median) if high > median else np.where(heights > 0, np.inf, -np.inf)


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
    stands_out = prominences([score], background_scores)[0] > entry.threshold
    return None if stands_out else NO_INFLUENCE_NOTICE


def strengths_of(
    scores: Sequence[float],
    intervals: Sequence[Interval | None],
    background_scores: Float32[np.ndarray, " v"],
    entry: NoticeEntry | None,
) -> list[Strength | None]:
    """Returns how strong each influence is, from its place among random rows and from the noise of its score.

    Two things count: whether the score stands out, as the best result has to for an answer without the notice; and
    whether the whole interval is above the 99th percentile of the background, which chance alone does not explain.

    Args:
        scores: Scores [k] of the results, which are proponents.
        intervals: The intervals [k] of the scores.
        background_scores: Scores of the background sample for the same query.
        entry: The calibrated threshold, or None for an index without one.

    Returns:
        For each result `strong` for both, `weak` for one of the two, `none` for neither; None where that is not known.
    """
    if entry is None or len(background_scores) < MIN_BACKGROUND_ROWS:
        return [None] * len(scores)
    lowest = [np.nan if interval is None else interval[0] for interval in intervals]
    stand_out, are_beyond_chance = (
        prominences(scores, background_scores) > entry.threshold,
        prominences(lowest, background_scores) > 1,
    )
    return [
        None if interval is None else _STRENGTHS[int(stands_out) + int(is_beyond_chance)]
        for interval, stands_out, is_beyond_chance in zip(
            intervals, stand_out, are_beyond_chance, strict=True
        )
    ]


def calibrate_notice(
    queries: NullQueries,
    profile: Profile,
    candidate_search: CandidateSearch,
    candidate_count: int,
    background: BackgroundSample,
) -> NoticeEntry | None:
    """Calibrates the threshold of the notice.

    The best row of each query is looked for among all rows, or among the candidates where these are fewer. The best row
    of a large index of sign rows may need more candidates than the 4,096 that are looked at here at most, which lowers
    the threshold a little.

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
    candidate_count = min(candidate_count, _MAX_CANDIDATES)
    scorer = ExactScorer(candidate_search.shards, profile)
    first_rows = np.array([shard.entry.first_row for shard in scorer.shards])
    background_numbers = first_rows[background.shard_numbers] + background.offsets
    scans_all = len(queries.rows) * candidate_count >= sum(shard.entry.rows for shard in scorer.shards)
    highest: list[float] = []
    for start in range(0, len(queries.rows), _QUERY_BATCH_SIZE):
        batch = slice(start, start + _QUERY_BATCH_SIZE)
        phi, weights = profile.prepare_queries(queries.rows[batch])
        sources = queries.sources[batch]
        if scans_all:
            best = _best_of_all(scorer, weights, sources)
        else:
            candidates = candidate_search.find(phi, candidate_count)
            best = _best_of_candidates(scorer, weights, sources, *candidates)
        background_scores = background.scores(profile, weights, [None] * len(first_rows))
        for query_best, query_sources, scores in zip(best, sources, background_scores, strict=True):
            others = scores[~np.isin(background_numbers, query_sources)]
            highest += prominences([query_best], others).tolist()
    threshold = extrapolate_threshold(np.array(highest))
    if not np.isfinite(threshold):
        return None
    return NoticeEntry(threshold=threshold, false_alarms=FALSE_ALARM_RATE, queries=len(highest))


def _best_of_all(
    scorer: ExactScorer, weights: Float[Tensor, "q m d"], sources: Int[np.ndarray, "q 2"]
) -> list[float]:
    """Returns the highest score of each query among all rows but those of its two sources."""
    best = torch.full((len(weights),), -torch.inf)
    for first_row, scores in scorer.iter_scores(weights):
        row_numbers = torch.arange(first_row, first_row + scores.shape[1])
        is_source = (torch.from_numpy(sources)[:, :, None] == row_numbers).any(1)
        best = torch.maximum(best, scores.masked_fill(is_source, -torch.inf).amax(1))
    return best.tolist()


def _best_of_candidates(
    scorer: ExactScorer,
    weights: Float[Tensor, "q m d"],
    sources: Int[np.ndarray, "q 2"],
    shard_numbers: Int[np.ndarray, "q k"],
    offsets: Int[np.ndarray, "q k"],
) -> list[float]:
    """Returns the highest score of each query among its candidates but those that are its two sources."""
    first_rows = np.array([shard.entry.first_row for shard in scorer.shards])
    best = []
    for query_weights, query_sources, *places in zip(weights, sources, shard_numbers, offsets, strict=True):
        stop_if_abandoned()
        in_shards, in_offsets = places
        is_other = ~np.isin(first_rows[in_shards] + in_offsets, query_sources)
        parts = scorer.module_scores(query_weights, in_shards[is_other], in_offsets[is_other])
        best.append(float(parts.sum(1).max()))
    return best


def extrapolate_threshold(highest: Float64[np.ndarray, " q"]) -> float:
    """Returns what `FALSE_ALARM_RATE` of the Gumbel distribution exceed that fits the middle of these prominences best.

    Numbers of the middle that are infinite, or fewer than two, fit none: then nothing stands out.

    Args:
        highest: Prominence of the best result of each null query.
    """
    shares = (np.arange(len(highest)) + 0.5) / len(highest)
    is_middle = (shares >= _FITTED_RANGE[0]) & (shares <= _FITTED_RANGE[1])
    middle, reduced = np.sort(highest)[is_middle], -np.log(-np.log(shares[is_middle]))
    if len(middle) < 2 or not np.isfinite(middle).all():
        return np.inf
    slope, location = np.polyfit(reduced, middle, deg=1)
    return float(location - slope * np.log(-np.log(1 - FALSE_ALARM_RATE)))
