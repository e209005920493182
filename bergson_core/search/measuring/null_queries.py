"""Null queries: made-up queries, that no document of the index states, which a build measures its search with.

A null query is the beginning of one document, followed by the middle of another, which is the completion: the first
half and the second half of short documents, and `HALF_TOKENS` tokens of each where they are longer. Of several endings
for a beginning, the likeliest is taken, since halves that do not fit are recognised too easily. One forward pass over a
beginning shows how likely the first token of each of its endings is; the other tokens are taken to be as likely as
those of the whole document, whose loss is known since its row was made.

How many queries are made follows from the tokens of the corpus, so that measuring takes a fraction of the time of the
pass that makes the rows (docs/decisions/0027-measuring-within-a-budget.md).

Legend: q null queries, n documents, m modules, d numbers per module.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from itertools import compress
from typing import Final

import numpy as np
import torch
from jaxtyping import Float, Float64, Int
from torch import Tensor

from bergson_core.gradients.row_collector import RowCollector, collect_rows
from bergson_core.models.forward_backward import compute_next_token_losses
from bergson_core.schemas.results import Progress
from bergson_core.shards.shard import Shard
from bergson_core.tokens.tokenization import Tokens
from bergson_core.utils.background import run_in_thread, stop_if_abandoned
from bergson_core.utils.progress import ProgressCallback

SOURCE_DOCUMENTS: Final = 128
"""Most documents of an index that its null queries are made of."""
MAX_NULL_QUERIES: Final = 256
MIN_NULL_QUERIES: Final = 16
"""As many are made for the smallest corpora, if there are documents enough."""
TOKEN_SHARE: Final = 0.07
"""Tokens of all null queries, as a share of the tokens of the corpus."""
MAX_SECONDS: Final = 45.0
"""When so much time has passed, no further queries are made."""
HALF_TOKENS: Final = 16
"""Most tokens of the beginning and of the ending of a null query."""
ENDINGS_TRIED: Final = 16
"""Endings for the beginning of a null query, of which the likeliest is taken."""
_QUERIES_A_STEP: Final = 32


@dataclass(frozen=True)
class NullQueries:
    """Made-up queries that no document states.

    Attributes:
        rows: Raw gradient rows [q, m, d].
        sources: Numbers [q, 2] of the rows, in the index, of the two documents that each query is made of.
    """

    rows: Float[Tensor, "q m d"]
    sources: Int[np.ndarray, "q 2"]


@dataclass(frozen=True)
class QuerySources:
    """A sample of the documents of an index, which null queries are made of.

    Attributes:
        row_numbers: Number [n] in the index of each document's row.
        documents: The n documents.
        token_losses: Mean loss [n] of a document's labelled tokens, in nats.
        index_rows: Number of all documents of the index.
    """

    row_numbers: Int[np.ndarray, " n"]
    documents: Sequence[Tokens]
    token_losses: Float64[np.ndarray, " n"]
    index_rows: int

    @classmethod
    def of_rows(
        cls, shards: Sequence[Shard], row_numbers: Sequence[int], documents: Sequence[Tokens]
    ) -> "QuerySources":
        """Returns documents with the losses that are stored with their rows.

        Args:
            shards: All shards of the index.
            row_numbers: Numbers of the rows, ascending.
            documents: The documents.
        """
        numbers, losses = np.asarray(row_numbers, dtype=np.int64), []
        for shard in shards:
            in_shard = shard.offsets_of(numbers)
            rows = shard.documents.select(["loss", "n_tokens"]).take(in_shard).to_pylist()
            losses += [
                np.inf if row["loss"] is None else row["loss"] / max(1, row["n_tokens"]) for row in rows
            ]
        # A pair is no text: what is preferred in it stands for it.
        texts = [document.sequences[0] for document in documents]
        return cls(numbers, texts, np.array(losses), sum(shard.entry.rows for shard in shards))

    def without_short_documents(self) -> "QuerySources":
        """Returns the documents that can be divided: those of two tokens or more."""
        is_long = np.array([len(document.ids) > 1 for document in self.documents], dtype=bool)
        documents = list(compress(self.documents, is_long))
        return QuerySources(self.row_numbers[is_long], documents, self.token_losses[is_long], self.index_rows)


def count_null_queries(documents: Sequence[Tokens], index_rows: int) -> int:
    """Returns how many null queries may be made, so that their tokens are `TOKEN_SHARE` of those of the corpus.

    Args:
        documents: A sample of the documents of the index.
        index_rows: Number of documents in the index.
    """
    tokens = sum(len(document.ids) for document in documents)
    query_tokens = sum(len(_splice(document, document).ids) for document in documents)
    affordable = TOKEN_SHARE * index_rows * tokens / max(1, query_tokens)
    return max(MIN_NULL_QUERIES, min(MAX_NULL_QUERIES, int(affordable)))


def collect_null_queries(
    collector: RowCollector,
    sources: QuerySources,
    count: int,
    budget_tokens: int,
    report: ProgressCallback,
) -> NullQueries:
    """Collects the gradients of null queries.

    Args:
        collector: Runs the model.
        sources: What they are made of.
        count: How many to make. Fewer are made of few documents, or if it takes longer than `MAX_SECONDS`.
        budget_tokens: Tokens of a batch, padding included.
        report: Called with the progress some fifty times a second.

    Returns:
        The queries without those whose rows are zero or not finite. None, q = 0, where there are too few documents to
        choose endings from.
    """
    started = time.monotonic()
    sources = sources.without_short_documents()
    documents = sources.documents
    pairs = _choose_pairs(collector, sources, count, budget_tokens, report)
    parts = [np.empty((0, collector.dimensions), dtype=np.float32)]
    for start in range(0, len(pairs), _QUERIES_A_STEP):
        if start and time.monotonic() - started > MAX_SECONDS:
            break
        step = pairs[start : start + _QUERIES_A_STEP]
        queries = [_splice(documents[beginning], documents[ending]) for beginning, ending in step]
        progress = Progress(stage="measure", done=start, total=len(pairs), unit="queries")
        report(progress)
        collect = partial(collect_rows, collector, queries, budget_tokens, stop_if_abandoned)
        parts.append(run_in_thread(collect, partial(report, progress))[0])
    rows = np.concatenate(parts)
    is_usable = np.isfinite(rows).all(1) & rows.any(1)
    modules = len(collector.slices)
    blocks = torch.from_numpy(rows[is_usable]).reshape(-1, modules, collector.dimensions // modules)
    return NullQueries(blocks, sources.row_numbers[pairs[: len(rows)]][is_usable])


def _choose_pairs(
    collector: RowCollector,
    sources: QuerySources,
    count: int,
    budget_tokens: int,
    report: ProgressCallback,
) -> Int[np.ndarray, "q 2"]:
    """Returns the positions of the documents that each query takes its beginning and its ending from."""
    documents, n = sources.documents, len(sources.documents)
    rounds = min(-(-count // max(1, n)), (n - 1) // ENDINGS_TRIED)
    if rounds < 1:
        return np.empty((0, 2), dtype=np.int64)
    used = min(n, count)
    steps = 1 + np.arange(rounds * ENDINGS_TRIED)
    endings = (np.arange(used)[:, None] + steps) % n  # [used, rounds · endings], no document with itself
    first_tokens = np.array([_ending(document)[0] for document in documents])
    beginnings = [_with_label(_beginning(document)) for document in documents[:used]]
    progress = Progress(stage="measure", total=min(count, used * rounds), unit="queries")
    first_losses = run_in_thread(
        lambda: compute_next_token_losses(
            collector.model, beginnings, first_tokens[endings], budget_tokens, stop_if_abandoned
        ),
        partial(report, progress),
    )
    lengths = np.array([len(_ending(document)) for document in documents])[endings]
    losses = (first_losses + (lengths - 1) * sources.token_losses[endings]) / lengths
    likeliest = losses.reshape(used, rounds, ENDINGS_TRIED).argmin(2)
    chosen = np.take_along_axis(endings.reshape(used, rounds, ENDINGS_TRIED), likeliest[..., None], 2)[..., 0]
    pairs = np.stack([np.broadcast_to(np.arange(used)[:, None], chosen.shape), chosen], axis=-1)
    return pairs.transpose(1, 0, 2).reshape(-1, 2)[:count]


def _beginning(document: Tokens) -> Int[np.ndarray, " s"]:
    return document.ids[: min(HALF_TOKENS, len(document.ids) // 2)]


def _ending(document: Tokens) -> Int[np.ndarray, " s"]:
    middle = len(document.ids) // 2
    return document.ids[middle : middle + HALF_TOKENS]


def _splice(document: Tokens, other: Tokens) -> Tokens:
    """Returns the beginning of one document, followed by the middle of another, which alone is labelled."""
    beginning = _beginning(document)
    return Tokens.labelled_from(np.concatenate([beginning, _ending(other)]), max(1, len(beginning)))


def _with_label(ids: Int[np.ndarray, " s"]) -> Tokens:
    """Returns tokens that are followed by another, which is labelled and may be any."""
    return Tokens.labelled_from(np.append(ids, 0), len(ids))
