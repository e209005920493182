"""How many of the true best rows are among the candidates: measured on every index before it is published.

Legend: q sampled documents taken as queries, n rows of a shard, m layers, d numbers a layer.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Final

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from bergson_core.data.batching import Tokens
from bergson_core.errors import InvalidInput
from bergson_core.gradients.row_collector import RowCollector, collect_rows
from bergson_core.schemas.build import SearchKind, SearchSpec
from bergson_core.search.candidates import CandidateSearch
from bergson_core.search.profile import CANDIDATES_PER_EXTRA_RESULT, Profile
from bergson_core.search.significance import collect_null_rows
from bergson_core.shards.shard import RowShape, Shard
from bergson_core.storage.manifest import SearchEntry

RECALL_QUERY_COUNT: Final = 64
"""Documents that are taken as queries."""
RECALL_DEPTH: Final = 10
_MIN_CANDIDATES: Final = {kind: RECALL_DEPTH * each for kind, each in CANDIDATES_PER_EXTRA_RESULT.items()}
_MAX_CANDIDATES: Final[dict[SearchKind, int]] = {
    "float16": 40 * RECALL_DEPTH,
    "rabitq": 400 * RECALL_DEPTH,
    "hamming": 2000 * RECALL_DEPTH,
}
"""Candidates for the ten best rows: what is tried first, and what is given up at."""
_MIN_BYTES_FOR_ONE_BIT: Final = 2**28
_ROW_CHUNK_SIZE: Final = 1024
_CANDIDATE_CHUNK_SIZE: Final = 2**16


@dataclass(frozen=True)
class RecallQueries:
    """Documents taken as queries: their `numbers` [q] in the index, and the raw `rows` [q, m, d] of the queries.

    `joined` [j, m, d] are those of queries made of two documents each, which none of them states (`notice`).
    """

    row_numbers: Int[np.ndarray, " q"]
    rows: Float[Tensor, "q m d"]
    null_rows: Float[Tensor, "j m d"] | None = None

    @classmethod
    def from_rows(
        cls, numbers: Int[np.ndarray, " q"], rows: Float[Tensor, "q D"], modules: int
    ) -> "RecallQueries":
        """Without the queries whose gradients are zero or not finite: nothing is like them."""
        good = rows.isfinite().all(1) & rows.any(1)
        return cls(numbers[good.numpy()], rows[good].reshape(int(good.sum()), modules, -1))

    @classmethod
    def collect(
        cls,
        collector: RowCollector,
        numbers: Sequence[int],
        tokens: Sequence[Tokens],
        budget_tokens: int,
        tick: Callable[[], object] = lambda: None,
    ) -> "RecallQueries":
        """The gradients of the ends of these documents, as of a prompt and a completion.

        Those of whole documents are found too easily where a corpus says a thing twice: on the demo's sign rows 400
        candidates held all of their ten best rows, 0.90 of those of the ends, and 0.94 of those of real questions.
        `tell` is called between batches.
        """
        rows, _ = collect_rows(collector, [_label_last_quarter(one) for one in tokens], budget_tokens, tick)
        sample = cls.from_rows(np.asarray(numbers), torch.from_numpy(rows), len(collector.slices))
        return replace(sample, null_rows=collect_null_rows(collector, tokens, budget_tokens, tick))


def _label_last_quarter(tokens: Tokens) -> Tokens:
    """Labelled are the last quarter of what was, and one token at least where any was."""
    labelled = np.flatnonzero(tokens.labels)
    labels = np.zeros_like(tokens.labels)
    labels[labelled[-max(1, len(labelled) // 4) :]] = True
    return Tokens(tokens.ids, labels)


def search_kinds_to_try(search: SearchSpec, shape: RowShape, count: int) -> tuple[SearchKind, ...]:
    """The kinds of search to try for an index of `count` rows, the leanest first."""
    if shape.kind == "sign":
        return ("hamming",)
    if search.kind != "auto":
        return ("float16",) if search.kind == "exact" else ("rabitq",)
    large = 2 * shape.modules * shape.width * count > _MIN_BYTES_FOR_ONE_BIT
    return ("rabitq", "float16") if large else ("float16",)


def choose_search_kind(
    kinds: Sequence[SearchKind], min_recall: float, measured: Callable[[SearchKind], SearchEntry]
) -> SearchEntry:
    """The first of `kinds` whose candidates hold `min_recall`; `measured` builds one and measures it.

    Raises `InvalidInput` where none does.
    """
    found = []
    for kind in kinds:
        found.append(measured(kind))
        if found[-1].recall_at_10 >= min_recall:
            return found[-1]
    said = ", ".join(f"{one.recall_at_10:.3f} by {one.kind} at {one.candidates} candidates" for one in found)
    raise InvalidInput(
        f"the candidates hold a recall@10 of {said}, less than min_recall {min_recall}: nothing is published. Build "
        "again with a lower min_recall or search kind exact, for which the finished rows are kept, or with other rows"
    )


def measure_recall(
    sample: RecallQueries,
    profile: Profile,
    shards: Sequence[Shard],
    candidates: CandidateSearch,
    min_recall: float,
) -> SearchEntry:
    """Recall@10 of the fewest candidates, doubled from `_LEAST` on, that hold `min_recall` if any do.

    The truth is the exact scores of all rows but the query's own; opponents are measured with as many candidates.
    """
    asked, weights = profile.prepare_queries(sample.rows)
    rows = sum(shard.entry.rows for shard in shards)
    most = min(rows, max(_MAX_CANDIDATES[candidates.kind], rows // 10 if candidates.kind == "hamming" else 0))
    recalls: list[Float[np.ndarray, " c"]] = []
    for sign in (1, -1):
        parts = (sign * asked).split(max(1, _CANDIDATE_CHUNK_SIZE // most))
        numbers = np.concatenate([candidates.find_row_numbers(part, most) for part in parts])
        least, scores = _truth(sign * weights, sample.row_numbers, numbers, profile, shards)
        wanted = min(RECALL_DEPTH, max(1, rows - 1))
        recalls.append((scores >= least).cumsum(1).clip(max=wanted).mean(0) / wanted)
    count = min(most, _MIN_CANDIDATES[candidates.kind])
    while count < most and recalls[0][count - 1] < min_recall:
        count = min(most, 2 * count)
    of_best, of_worst = (float(recall[count - 1]) for recall in recalls)
    return SearchEntry(
        kind=candidates.kind,
        candidates=count,
        recall_at_10=of_best,
        opponents_recall_at_10=of_worst,
        queries=len(sample.row_numbers),
        rows=rows,
    )


def _truth(
    weights: Float[Tensor, "q m d"],
    own: Int[np.ndarray, " q"],
    numbers: Int[np.ndarray, "q c"],
    profile: Profile,
    shards: Sequence[Shard],
) -> tuple[Float[np.ndarray, "q 1"], Float[np.ndarray, "q c"]]:
    """(the tenth best exact score of all rows but the query's own, the exact scores of the candidates `numbers`).

    A row as good as the tenth best is as good an answer: a corpus may hold the same document twice. So scores are told
    apart by more than rounding only.
    """
    best, mine = torch.empty(len(own), 0), torch.from_numpy(own)[:, None]
    wanted, order, done = numbers.ravel(), np.argsort(numbers, axis=None), 0
    found = np.full(wanted.shape, -np.inf, dtype=np.float32)
    flat = weights.flatten(1).float().mT
    parts = (
        (
            shard.entry.first_row + start,
            profile.scores(number, shard, slice(start, start + _ROW_CHUNK_SIZE), flat),
        )
        for number, shard in enumerate(shards)
        for start in range(0, shard.entry.rows, _ROW_CHUNK_SIZE)
    )
    for first, scores in parts:
        here = torch.arange(first, first + len(scores))
        scores = scores.mT.masked_fill(here == mine, -torch.inf)
        best = torch.cat([best, scores], dim=1)
        best = best.topk(min(RECALL_DEPTH, best.shape[1])).values
        end = int(np.searchsorted(wanted, first + len(here), sorter=order))
        inside, done = order[done:end], end
        found[inside] = scores.numpy()[inside // numbers.shape[1], wanted[inside] - first]
    others = sum(shard.entry.rows for shard in shards) - 1
    last = min(RECALL_DEPTH, max(1, others)) - 1
    least = best[:, last : last + 1]
    return (least - 1e-5 * least.abs() - 1e-9).numpy(), found.reshape(numbers.shape)
