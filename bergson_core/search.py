"""FAISS finds candidates; `attribution` scores them exactly from the stored rows.

Legend: q queries, n rows of a shard, m layers, d numbers a layer, D = m·d.

One FAISS file a shard, so that building needs the memory of one shard and appending touches no old file. It
holds φ = C^-½ row / lengths, as float16, or the bits of sign rows themselves, compared by Hamming distance.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, overload

import faiss
import numpy as np
import torch
from jaxtyping import Bool, Float, Float32, Int
from torch import Tensor

from bergson_core.files import file_entry
from bergson_core.manifest import FileEntry, SearchKind, ShardEntry
from bergson_core.preconditioners import Preconditioner
from bergson_core.specs import Normalize
from bergson_core.store import RowShape, Shard

_AT_ONCE = 1024
_QUERY_BITS = 8


def search_path(kind: SearchKind, shard: str) -> str:
    """Where below its directory an index keeps what finds candidates in a shard."""
    return f"search/{kind}/{shard}.faiss"


def features(
    rows: Float[Tensor, "n m d"], preconditioner: Preconditioner | None, normalize: Normalize
) -> tuple[Float[Tensor, "n D"], Float[Tensor, "n c"]]:
    """(φ [n, D], lengths [n, c]) of rows [n, m, d]: φ is C^-½ row over its lengths, 0 where they are.

    `none`: lengths are 1. `row`: φ is of unit length. `block`: each of the m blocks is of length 1/√m, so that an
    inner product of two φ is the mean of their layers' cosines.
    """
    phi = preconditioner.apply(rows) if preconditioner else rows
    if normalize == "block":
        lengths = torch.linalg.vector_norm(phi, dim=2) * phi.shape[1] ** 0.5
    elif normalize == "row":
        lengths = torch.linalg.vector_norm(phi, dim=(1, 2))[:, None]
    else:
        lengths = phi.new_ones(len(phi), 1)
    return (phi * inverse(lengths)[..., None]).flatten(1), lengths


def shard_features(
    shard: Shard, preconditioner: Preconditioner | None, normalize: Normalize
) -> Iterator[tuple[Float[Tensor, "n D"], Float[Tensor, "n c"]]]:
    """`features` of a shard's rows, `_AT_ONCE` at a time."""
    for start in range(0, shard.entry.rows, _AT_ONCE):
        yield features(shard.rows(slice(start, start + _AT_ONCE)), preconditioner, normalize)


def inverse(lengths: Float[Tensor, "n c"]) -> Float[Tensor, "n c"]:
    """1 / lengths, and 0 for 0."""
    return torch.where(lengths > 0, 1 / lengths, 0)


def build_shard_search(
    root: Path,
    shard: Shard,
    preconditioner: Preconditioner | None,
    normalize: Normalize,
    kind: SearchKind,
) -> tuple[FileEntry, Float32[np.ndarray, "n c"]]:
    """Writes the FAISS index of one shard; returns the lengths of its rows too, which are 1 for sign rows."""
    path = root / search_path(kind, shard.entry.name)
    path.parent.mkdir(parents=True, exist_ok=True)
    if kind == "hamming":
        flat = shard.blocks.reshape(shard.entry.rows, -1)
        bits = faiss.IndexBinaryFlat(8 * flat.shape[1])
        bits.add(np.ascontiguousarray(flat))
        faiss.write_index_binary(bits, str(path))
        return file_entry(path, root), np.ones((shard.entry.rows, 1), dtype=np.float32)
    dimensions = shard.shape.layers * shard.shape.width
    index = _empty(kind, dimensions)
    all_lengths = []
    for phi, lengths in shard_features(shard, preconditioner, normalize):
        index.add(phi.numpy())
        all_lengths.append(lengths.numpy())
    faiss.write_index(index, str(path))
    return file_entry(path, root), np.concatenate(all_lengths)


def _only(rows: Bool[np.ndarray, " n"], kind: SearchKind) -> Any:
    """What makes FAISS look at these rows alone."""
    made: Any = faiss  # whose constructors are known at run time only
    selector = made.IDSelectorBitmap(np.packbits(rows, bitorder="little"))
    if kind == "rabitq":
        return made.RaBitQSearchParameters(sel=selector, qb=_QUERY_BITS)
    return made.SearchParameters(sel=selector)


def _empty(kind: SearchKind, dimensions: int) -> faiss.Index:
    """An index for φ. RaBitQ (Gao and Long, arXiv 2405.12497) gets no centre: φ lie around the origin."""
    if kind == "float16":
        return faiss.IndexScalarQuantizer(
            dimensions, faiss.ScalarQuantizer.QT_fp16, faiss.METRIC_INNER_PRODUCT
        )
    index = faiss.IndexRaBitQ(dimensions, faiss.METRIC_INNER_PRODUCT)
    index.train(np.zeros((1, dimensions), dtype=np.float32))
    index.qb = _QUERY_BITS
    return index


@dataclass(frozen=True)
class Candidates:
    """The FAISS indexes of some shards, and the numbers of their first rows."""

    indexes: Sequence[faiss.Index | faiss.IndexBinary]
    firsts: Sequence[int]
    kind: SearchKind
    shape: RowShape

    @classmethod
    def open(
        cls,
        root: Path,
        shards: Sequence[ShardEntry],
        kind: SearchKind,
        shape: RowShape,
        *,
        in_turn: bool = False,
    ) -> "Candidates":
        """Maps files that were checked (`files.check_files`): FAISS trusts what it reads.

        With `in_turn`, one at a time whenever they are asked, so that memory does not grow with the shards.
        """
        load = faiss.read_index_binary if kind == "hamming" else faiss.read_index

        def read(path: str) -> Any:
            return load(path, faiss.IO_FLAG_MMAP_IFC)

        paths = [root / search_path(kind, shard.name) for shard in shards]
        indexes = _InTurn(read, paths) if in_turn else [read(str(path)) for path in paths]
        return cls(indexes, [shard.first_row for shard in shards], kind, shape)

    def numbers(self, queries: Float32[Tensor, "q D"], count: int) -> Int[np.ndarray, "q k"]:
        """As `find`, the numbers of the rows in the index."""
        shards, places = self.find(queries, count)
        return np.asarray(self.firsts)[shards] + places

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
        if self.kind == "hamming":
            blocks, _ = self.shape.codec.encode(queries.reshape(-1, self.shape.layers, self.shape.width))
            asked, sign = blocks.flatten(1).numpy(), -1
        else:
            asked, sign = queries.numpy(), 1
        scores = np.empty((len(asked), 0), dtype=np.float32)
        shards, places = (np.empty((len(asked), 0), dtype=np.int64) for _ in range(2))
        for number, index in enumerate(self.indexes):
            rows = None if allowed is None else allowed[number]
            params = None if rows is None else _only(rows, self.kind)
            found_scores, found = index.search(asked, min(count, index.ntotal), params=params)
            found_scores = np.where(found >= 0, sign * found_scores, -np.inf).astype(np.float32)
            scores = np.concatenate([scores, found_scores], axis=1)
            shards = np.concatenate([shards, np.full_like(found, number)], axis=1)
            places = np.concatenate([places, found], axis=1)
            best = np.argsort(-scores, axis=1, kind="stable")[
                :, :count
            ]  # no more than these are kept at a time
            scores, shards, places = (
                np.take_along_axis(part, best, axis=1) for part in (scores, shards, places)
            )
        return shards, places


class _InTurn(Sequence[Any]):
    """Indexes that are read when they are looked at and not kept: what is in memory is one of them."""

    def __init__(self, read: Callable[[str], Any], paths: Sequence[Path]) -> None:
        self._read, self._paths = read, paths

    def __len__(self) -> int:
        return len(self._paths)

    @overload
    def __getitem__(self, number: int) -> Any: ...
    @overload
    def __getitem__(self, number: slice) -> Sequence[Any]: ...
    def __getitem__(self, number: int | slice) -> Any:
        if isinstance(number, slice):
            return _InTurn(self._read, self._paths[number])
        return self._read(str(self._paths[number]))
