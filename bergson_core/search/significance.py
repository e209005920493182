"""Whether anything stands out: the notice of an answer, and the queries that it is calibrated with.

Legend: q queries, r sampled rows, m layers, d numbers a layer.

How far a result stands out is its prominence: its height above the median of the sampled rows' scores (`sampled`), in
units of that of their 99th percentile. Scores of different queries have different sizes and spreads; of this nothing is
left in it. Where the best result's is not above the index's threshold, the answer says that no strong influence was
found.

The threshold is what `1 - FALSE_ALARMS` of made-up queries stay below, which no document states: the first half of
one document's tokens, then the second half of another's, for each that one of `CHOICES` which the model finds likeliest
there. Halves that do not fit are told too easily (docs/quality.md has what was measured). So false alarms are promised
among queries like these alone.
"""

from collections.abc import Callable, Sequence
from typing import Final

import numpy as np
import torch
from jaxtyping import Float, Float32
from torch import Tensor

from bergson_core.data.batching import Tokens
from bergson_core.gradients.row_collector import RowCollector, collect_rows
from bergson_core.models.forward_backward import compute_document_losses
from bergson_core.search.background_sample import BackgroundSample
from bergson_core.search.candidates import CandidateSearch
from bergson_core.search.exact_scores import ExactScorer
from bergson_core.search.profile import Profile
from bergson_core.storage.manifest import NoticeEntry

NO_INFLUENCE_NOTICE: Final = "no strong influence found"
FALSE_ALARM_RATE: Final = 0.05
ENDINGS_TRIED: Final = 4
_QUERIES_PER_DOCUMENT: Final = 4
MIN_BACKGROUND_ROWS: Final = 50
"""Of the sample: among fewer nothing can stand out."""
_MAX_CANDIDATES: Final = 4096
_QUERY_BATCH_SIZE: Final = 64


def prominence(score: float, sampled: Float32[np.ndarray, " r"]) -> float:
    """How far a score stands out from those of the sampled rows: 1 as far as the 99th percentile, 0 not at all."""
    middle, high = np.quantile(sampled, (0.5, 0.99))
    above = score - float(middle)
    return above / float(high - middle) if high > middle else float(np.sign(above)) * np.inf


def significance_notice(
    score: float, sampled: Float32[np.ndarray, " r"], entry: NoticeEntry | None
) -> str | None:
    """`NOTICE` where the best result's score does not stand out; None where it does, or where that is not known."""
    if entry is None or len(sampled) < MIN_BACKGROUND_ROWS:
        return None
    return None if prominence(score, sampled) > entry.threshold else NO_INFLUENCE_NOTICE


def collect_null_rows(
    collector: RowCollector,
    documents: Sequence[Tokens],
    budget_tokens: int,
    tick: Callable[[], object] = lambda: None,
    *,
    endings_tried: int = ENDINGS_TRIED,
) -> Float[Tensor, "q m d"]:
    """Raw rows of made-up queries, four for each document; none where there are too few documents to choose from.

    Of `choices` ends for each beginning the likeliest is taken. `tell` is called between batches.
    """
    layers, count = len(collector.slices), len(documents)
    if count <= endings_tried * _QUERIES_PER_DOCUMENT:
        return torch.empty(0, layers, collector.dimensions // layers)
    pairs = [
        _splice(documents[k], documents[(k + endings_tried * group + step) % count])
        for group in range(_QUERIES_PER_DOCUMENT)
        for k in range(count)
        for step in range(1, endings_tried + 1)
    ]
    losses = compute_document_losses(collector.model, pairs, budget_tokens, tick)
    labelled = np.array([one.labelled for one in pairs])
    fit = np.where(labelled > 0, losses / np.maximum(labelled, 1), np.inf)
    best = fit.reshape(-1, endings_tried).argmin(1) + endings_tried * np.arange(len(pairs) // endings_tried)
    rows, _ = collect_rows(collector, [pairs[k] for k in best], budget_tokens, tick)
    found = torch.from_numpy(rows)
    good = found.isfinite().all(1) & found.any(1)
    return found[good].reshape(int(good.sum()), layers, -1)


def _splice(one: Tokens, other: Tokens) -> Tokens:
    """The first half of one document and, to be explained, the second half of another."""
    beginning, end = one.ids[: len(one.ids) // 2], other.ids[len(other.ids) // 2 :]
    return Tokens.labelled_from(np.concatenate([beginning, end]), max(1, len(beginning)))


def calibrate_notice(
    queries: Float[Tensor, "q m d"],
    profile: Profile,
    candidates: CandidateSearch,
    count: int,
    sampled: BackgroundSample,
) -> NoticeEntry | None:
    """The threshold for made-up queries, of which each takes `count` candidates; None where there is too little to say.

    The best of an index of signs may need more candidates than are looked at here, which lowers the threshold a little.
    """
    if len(queries) == 0 or len(sampled.offsets) < MIN_BACKGROUND_ROWS:
        return None
    exact, found = ExactScorer(candidates.shards, profile), []
    for part in queries.split(_QUERY_BATCH_SIZE):
        phi, weights = profile.prepare_queries(part)
        of_sample = sampled.scores(profile, weights, [None] * len(candidates.shards))
        rows = candidates.find(phi, min(count, _MAX_CANDIDATES))
        for one, shards, places, scores in zip(weights, *rows, of_sample, strict=True):
            best = exact.module_scores(one, shards, places).sum(1).max()
            found.append(prominence(float(best), scores))
    threshold = float(np.quantile(found, 1 - FALSE_ALARM_RATE, method="higher"))
    return NoticeEntry(threshold=threshold, false_alarms=FALSE_ALARM_RATE, queries=len(found))
