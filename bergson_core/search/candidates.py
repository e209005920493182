"""Which rows of an index may be the best for a query; `searcher` scores them exactly from the stored rows.

Legend: q queries, n rows of a shard, D numbers a row, k candidates.

Real rows are looked for by FAISS, over φ (`search`). Sign rows are their own index: their bits and those of the query
are compared by Hamming distance. Shards are searched side by side.
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

_MERGE_AT_SCORES: Final = 2**20
"""Scores that are gathered before the best of them are taken: 12 MiB with the numbers of their rows."""


class ShardCandidateSearch(ABC):
    """What looks for candidates in one shard."""

    @abstractmethod
    def search(
        self, asked: np.ndarray, count: int, rows: Bool[np.ndarray, " n"] | None
    ) -> tuple[Float32[np.ndarray, "q k"], Int[np.ndarray, "q k"]]:
        """(scores, places in the shard) of the `count` best of `rows` at least; what is not of them scores -inf."""


@final
class FaissShardSearch(ShardCandidateSearch):
    """φ of a shard, compared by inner product."""

    def __init__(self, path: Path, kind: SearchKind) -> None:
        """Maps a file that was checked (`files.check_files`): FAISS trusts what it reads."""
        self._index, self._kind = faiss.read_index(str(path), faiss.IO_FLAG_MMAP_IFC), kind

    def search(
        self, asked: np.ndarray, count: int, rows: Bool[np.ndarray, " n"] | None
    ) -> tuple[np.ndarray, np.ndarray]:
        params = None if rows is None else self._only(rows)
        scores, places = self._index.search(asked, min(count, self._index.ntotal), params=params)
        scores[places < 0] = -np.inf
        return scores, places

    def _only(self, rows: Bool[np.ndarray, " n"]) -> Any:
        """What makes FAISS look at these rows alone."""
        made: Any = faiss  # whose constructors are known at run time only
        selector = made.IDSelectorBitmap(np.packbits(rows, bitorder="little"))
        if self._kind == "rabitq":
            return made.RaBitQSearchParameters(sel=selector, qb=QUERY_BITS)
        return made.SearchParameters(sel=selector)


@final
class HammingShardSearch(ShardCandidateSearch):
    """The bits of a shard's rows, compared by Hamming distance. With `briefly` no mapped pages are left in memory."""

    def __init__(self, blocks: UInt8[np.ndarray, "n m w"], *, briefly: bool) -> None:
        self._bits, self._briefly = blocks.reshape(len(blocks), -1), briefly

    def search(
        self, asked: np.ndarray, count: int, rows: Bool[np.ndarray, " n"] | None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Of all rows: whoever merges them takes the best, once for many shards."""
        (n, width), q = self._bits.shape, len(asked)
        distances = np.empty((n, q), dtype=np.int32)
        bits, queries, out = (faiss.swig_ptr(array) for array in (self._bits, asked, distances))
        faiss.hammings(bits, queries, n, q, width, out)  # type: ignore[attr-defined]
        if self._briefly:
            release_pages(self._bits)
        scores = -distances.T.astype(np.float32)
        if rows is not None:
            scores[:, ~rows] = -np.inf
        return scores, np.broadcast_to(np.arange(n), (q, n))


@dataclass(frozen=True)
class CandidateSearch:
    """What looks for candidates in each of some shards.

    `parts` open it when they are called: what is kept open answers at once, what is not is in memory for a moment.
    """

    shards: Sequence[Shard]
    shard_searches: Sequence[Callable[[], ShardCandidateSearch]]
    kind: SearchKind

    @classmethod
    def open(
        cls, root: Path, shards: Sequence[Shard], kind: SearchKind, *, low_memory: bool = False
    ) -> "CandidateSearch":
        """Of these shards of the index in directory `root`. `briefly`: each is in memory only while it is searched."""
        parts: list[Callable[[], ShardCandidateSearch]] = []
        for shard in shards:
            if kind == "hamming":
                make = partial(HammingShardSearch, shard.blocks, briefly=low_memory)
            else:
                make = partial(FaissShardSearch, root / search_path(kind, shard.entry.name), kind)
            parts.append(make if low_memory else partial(_same, make()))
        return cls(shards, parts, kind)

    def find_row_numbers(self, queries: Float32[Tensor, "q D"], count: int) -> Int[np.ndarray, "q k"]:
        """As `find`, the numbers of the rows in the index."""
        shards, places = self.find(queries, count)
        return np.array([shard.entry.first_row for shard in self.shards])[shards] + places

    def find(
        self,
        queries: Float32[Tensor, "q D"],
        count: int,
        allowed: Sequence[np.ndarray | None] | None = None,
    ) -> tuple[Int[np.ndarray, "q k"], Int[np.ndarray, "q k"]]:
        """(shard [q, k], place in the shard [q, k]) of the `count` rows most like each query, best first.

        They are compared by ⟨φ, query⟩, or by Hamming distance where rows are signs. k is `count`, or the number of
        all rows where they are fewer. With `allowed`, bool [n] by shard or None for all of it, only these rows
        are looked at; where they are fewer than k, the rest of the places are -1.
        """
        asked, allowed = self._asked(queries), allowed or [None] * len(self.shards)
        starts = np.cumsum([0, *(shard.entry.rows for shard in self.shards)])

        def search(number: int) -> tuple[np.ndarray, np.ndarray]:
            scores, places = self.shard_searches[number]().search(asked, count, allowed[number])
            return scores, starts[number] + places

        count = min(count, int(starts[-1]))
        scores, rows = _merge_best(parallel_map(search, range(len(self.shard_searches))), len(asked), count)
        shards = np.searchsorted(starts, rows, side="right") - 1
        return shards, np.where(scores > -np.inf, rows - starts[shards], -1)

    def _asked(self, queries: Float32[Tensor, "q D"]) -> np.ndarray:
        """What the parts compare: numbers, or their signs as the rows have them."""
        if self.kind != "hamming":
            return queries.numpy()
        shape = self.shards[0].shape
        blocks, _ = shape.codec.encode(queries.reshape(-1, shape.modules, shape.width))
        return np.ascontiguousarray(blocks.flatten(1).numpy())


def _same(part: ShardCandidateSearch) -> ShardCandidateSearch:
    return part


def _merge_best(
    found: Iterable[tuple[np.ndarray, np.ndarray]], queries: int, count: int
) -> tuple[Float32[np.ndarray, "q k"], Int[np.ndarray, "q k"]]:
    """(scores, rows) of the `count` best, best first, of what comes in parts; no more than a few parts are kept."""
    kept = [(np.full((queries, count), -np.inf, np.float32), np.zeros((queries, count), np.int64))]
    waiting = 0
    for scores, rows in found:
        kept.append((scores, rows))
        waiting += scores.shape[1]
        if waiting >= max(_MERGE_AT_SCORES // max(1, queries), 4 * count):
            kept, waiting = [_best(kept, count)], 0
    return _best(kept, count)


def _best(parts: Sequence[tuple[np.ndarray, np.ndarray]], count: int) -> tuple[np.ndarray, np.ndarray]:
    """The `count` best of some parts; of equal ones the first."""
    scores, rows = (np.concatenate(both, axis=1) for both in zip(*parts, strict=True))
    least = torch.from_numpy(scores).topk(count, dim=1).values[:, -1:].numpy()
    best = np.empty((len(scores), count), dtype=np.int64)
    for one, good in enumerate(scores >= least):
        places = np.flatnonzero(good)
        best[one] = places[np.argsort(-scores[one, places], kind="stable")[:count]]
    return np.take_along_axis(scores, best, axis=1), np.take_along_axis(rows, best, axis=1)
