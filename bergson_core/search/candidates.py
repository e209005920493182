"""Finds the candidates of a query: the rows that may score highest, which `exact_scores` then scores exactly.

In an index of real numbers, FAISS looks for candidates among φ (`features`). In an index of sign rows, the bits of the
rows and those of the query are compared by Hamming distance. Shards are searched in parallel.

Legend: q queries, n rows of a shard, m modules, w bytes of a module's block of a sign row, D numbers of a row, k
candidates. The offset of a row is its number within its shard.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final, final

import faiss
import numpy as np
import torch
from jaxtyping import Bool, Float32, Int, UInt8
from torch import Tensor

from bergson_core.schemas.build import SearchKind
from bergson_core.search.faiss_index import QUERY_BITS
from bergson_core.search.thread_pool import parallel_map
from bergson_core.shards.shard import Shard
from bergson_core.storage.layout import search_path
from bergson_core.utils.memory_map import release_pages

_EXACT_SEARCH_FACTOR: Final = 10
"""Rows that are allowed are all taken where they are at most this many times as many as the candidates."""
_MERGE_AT_SCORES: Final = 2**13
"""Scores that are gathered from shards before the best of them are taken, which rows of later shards have to beat."""


class ShardCandidateSearch(ABC):
    """Looks for candidates in one shard."""

    @abstractmethod
    def search(
        self, queries: np.ndarray, count: int, allowed: Bool[np.ndarray, " n"] | None
    ) -> tuple[Float32[np.ndarray, "q k"], Int[np.ndarray, "_ k"]]:
        """Returns rows of the shard with their scores, among them the best `count` of the allowed rows.

        Args:
            queries: What the rows are compared with, one query per line.
            count: How many of the best rows have to be among those that are returned.
            allowed: Which rows may be found, or None for all of them.

        Returns:
            (scores [q, k], offsets [q, k]), where rows that are not allowed have the score -inf. The offsets are [1, k]
            where they are the same for all queries.
        """


@final
class FaissShardSearch(ShardCandidateSearch):
    """Compares a query with φ of the rows by inner product."""

    def __init__(self, path: Path, kind: SearchKind) -> None:
        """Maps a FAISS file, which has to be checked before (`storage.integrity`): FAISS trusts what it reads."""
        self._index, self._kind = faiss.read_index(str(path), faiss.IO_FLAG_MMAP_IFC), kind

    def search(
        self, queries: np.ndarray, count: int, allowed: Bool[np.ndarray, " n"] | None
    ) -> tuple[np.ndarray, np.ndarray]:
        parameters = None if allowed is None else self._restricted_to(allowed)
        scores, offsets = self._index.search(queries, min(count, self._index.ntotal), params=parameters)
        scores[offsets < 0] = -np.inf
        return scores, offsets

    def _restricted_to(self, allowed: Bool[np.ndarray, " n"]) -> Any:
        """Returns search parameters that make FAISS look at the allowed rows alone."""
        untyped_faiss: Any = faiss  # the constructors of these classes are known at run time only
        selector = untyped_faiss.IDSelectorBitmap(np.packbits(allowed, bitorder="little"))
        if self._kind == "rabitq":
            return untyped_faiss.RaBitQSearchParameters(sel=selector, qb=QUERY_BITS)
        return untyped_faiss.SearchParameters(sel=selector)


@final
class HammingShardSearch(ShardCandidateSearch):
    """Compares the bits of a query with those of sign rows by Hamming distance."""

    def __init__(self, blocks: UInt8[np.ndarray, "n m w"], *, low_memory: bool) -> None:
        """Takes the mapped bits of a shard; with `low_memory` their pages are released after each search."""
        self._bits, self._low_memory = blocks.reshape(len(blocks), -1), low_memory

    def search(
        self, queries: np.ndarray, count: int, allowed: Bool[np.ndarray, " n"] | None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Returns all rows of the shard: few of them are better than the best of the shards before (`_merge_best`)."""
        (n, row_bytes), q = self._bits.shape, len(queries)
        distances = np.empty((n, q), dtype=np.int32)
        pointers = (faiss.swig_ptr(array) for array in (self._bits, queries, distances))
        row_bits, query_bits, output = pointers
        faiss.hammings(row_bits, query_bits, n, q, row_bytes, output)  # type: ignore[attr-defined]
        if self._low_memory:
            release_pages(self._bits)
        scores = -distances.T.astype(np.float32)
        if allowed is not None:
            scores[:, ~allowed] = -np.inf
        return scores, np.arange(n)[None]


@dataclass(frozen=True)
class CandidateSearch:
    """Looks for candidates in some shards of an index.

    Attributes:
        shards: The shards.
        shard_searches: For each shard a function that returns its search: one that is kept open, or one that is opened
            for this call.
        kind: How rows are compared.
    """

    shards: Sequence[Shard]
    shard_searches: Sequence[Callable[[], ShardCandidateSearch]]
    kind: SearchKind

    @classmethod
    def open(
        cls, root: Path, shards: Sequence[Shard], kind: SearchKind, *, low_memory: bool = False
    ) -> "CandidateSearch":
        """Opens the search over these shards of the index in the directory `root`.

        Args:
            root: Directory of the index.
            shards: The shards to search.
            kind: How rows are compared.
            low_memory: Open each shard's search only while the shard is searched. By default all are kept open, which
                answers faster.
        """
        shard_searches: list[Callable[[], ShardCandidateSearch]] = []
        for shard in shards:
            if kind == "hamming":
                open_search = partial(HammingShardSearch, shard.blocks, low_memory=low_memory)
            else:
                open_search = partial(FaissShardSearch, root / search_path(kind, shard.entry.name), kind)
            shard_searches.append(open_search if low_memory else _keep_open(open_search()))
        return cls(shards, shard_searches, kind)

    def find_row_numbers(self, queries: Float32[Tensor, "q D"], count: int) -> Int[np.ndarray, "q k"]:
        """Returns the candidates that `find` does, as numbers of rows in the index."""
        shard_numbers, offsets = self.find(queries, count)
        return np.array([shard.entry.first_row for shard in self.shards])[shard_numbers] + offsets

    def find(
        self,
        queries: Float32[Tensor, "q D"],
        count: int,
        allowed: Sequence[np.ndarray | None] | None = None,
    ) -> tuple[Int[np.ndarray, "q k"], Int[np.ndarray, "q k"]]:
        """Finds the rows that are most like each query, best first.

        Rows are compared by ⟨φ, query⟩, or by Hamming distance where rows are signs.

        Args:
            queries: What the rows are compared with: `phi` [q, D] of `Profile.prepare_queries`.
            count: How many candidates to find for each query.
            allowed: For each shard which rows may be found: bool [n], or None for all of them.

        Returns:
            (shard numbers [q, k], offsets [q, k]), where k is `count`, or the number of all rows if that is smaller.
            Where fewer than k rows are allowed, the remaining offsets are -1.
        """
        comparable, allowed = self._comparable_queries(queries), allowed or [None] * len(self.shards)
        first_rows = np.cumsum([0, *(shard.entry.rows for shard in self.shards)])
        count = min(count, int(first_rows[-1]))

        def search_shard(number: int) -> tuple[np.ndarray, np.ndarray]:
            scores, offsets = self.shard_searches[number]().search(comparable, count, allowed[number])
            return scores, first_rows[number] + offsets

        shard_results = parallel_map(search_shard, range(len(self.shard_searches)))
        scores, rows = _merge_best(shard_results, len(comparable), count)
        shard_numbers = np.searchsorted(first_rows, rows, side="right") - 1
        return shard_numbers, np.where(scores > -np.inf, rows - first_rows[shard_numbers], -1)

    def find_or_take_all(
        self,
        queries: Float32[Tensor, "q D"],
        count: int,
        allowed: Sequence[np.ndarray | None],
    ) -> tuple[Int[np.ndarray, "q k"], Int[np.ndarray, "q k"]]:
        """Returns what `find` does or, where few rows are allowed, all of them.

        To score these exactly takes no longer than to ask which are the best.
        """
        masks = [mask for mask in allowed if mask is not None]
        are_few = count_allowed(self.shards, allowed) <= _EXACT_SEARCH_FACTOR * count
        if len(masks) < len(allowed) or not are_few:
            return self.find(queries, count, allowed)
        offsets = [np.flatnonzero(mask) for mask in masks]
        shard_numbers = np.repeat(np.arange(len(offsets)), [len(in_shard) for in_shard in offsets])
        shape = (len(queries), len(shard_numbers))
        return np.broadcast_to(shard_numbers, shape), np.broadcast_to(np.concatenate(offsets), shape)

    def _comparable_queries(self, queries: Float32[Tensor, "q D"]) -> np.ndarray:
        """Returns what shards compare with their rows: the numbers of the queries, or their signs packed as bits."""
        if self.kind != "hamming":
            return queries.numpy()
        shape = self.shards[0].shape
        blocks, _ = shape.codec.encode(queries.reshape(-1, shape.modules, shape.width))
        return np.ascontiguousarray(blocks.flatten(1).numpy())


def count_allowed(shards: Sequence[Shard], allowed: Sequence[np.ndarray | None]) -> int:
    """Returns the number of rows of these shards that are allowed: for each shard bool [n], or None for all of them."""
    pairs = zip(shards, allowed, strict=True)
    return sum(shard.entry.rows if mask is None else int(np.count_nonzero(mask)) for shard, mask in pairs)


def _keep_open(search: ShardCandidateSearch) -> Callable[[], ShardCandidateSearch]:
    return lambda: search


def _merge_best(
    shard_results: Iterable[tuple[np.ndarray, np.ndarray]], query_count: int, count: int
) -> tuple[Float32[np.ndarray, "q k"], Int[np.ndarray, "q k"]]:
    """Returns (scores, rows) of the `count` best rows of all shards, best first, of equal ones the first.

    The results of a few shards are in memory at a time.
    """
    best = np.full((query_count, count), -np.inf, np.float32), np.zeros((query_count, count), np.int64)
    gathered, scores_a_query = [best], 0
    for scores, rows in shard_results:
        # A later row that only equals the last of the best so far stays behind it.
        columns = np.flatnonzero((scores > best[0][:, -1:]).any(axis=0))
        gathered.append((scores[:, columns], np.broadcast_to(rows[:, columns], (query_count, len(columns)))))
        scores_a_query += len(columns)
        if scores_a_query >= max(_MERGE_AT_SCORES // max(1, query_count), 4 * count):
            best = _take_best(gathered, count)
            gathered, scores_a_query = [best], 0
    return _take_best(gathered, count)


def _take_best(results: Sequence[tuple[np.ndarray, np.ndarray]], count: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns (scores, rows) of the `count` best rows of several results, of equal ones the first."""
    scores, rows = (np.concatenate(arrays, axis=1) for arrays in zip(*results, strict=True))
    lowest = torch.from_numpy(scores).topk(count, dim=1).values[:, -1:].numpy()
    best = np.empty((len(scores), count), dtype=np.int64)
    for query, is_high in enumerate(scores >= lowest):
        columns = np.flatnonzero(is_high)
        best[query] = columns[np.argsort(-scores[query, columns], kind="stable")[:count]]
    return np.take_along_axis(scores, best, axis=1), np.take_along_axis(rows, best, axis=1)
