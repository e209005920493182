"""The exact scores of rows: the one place where the score of a stored row is computed.

    score = Σ_m weights_m · row_m / length_m        weights = C^-½ φ(query), from `Profile.prepare_queries`

The score is linear in the row as it is stored, so it is the sum of a part for each module, whatever codec the row is
kept in. `ExactScorer.module_scores` computes these parts for the candidates of a query, and `ExactScorer.score_range`
the whole scores of a run of rows, for scans of the corpus.

Legend: q queries, k rows of any shards, n consecutive rows of one shard, m modules, d numbers per module, D = m·d; c is
the number of lengths that a row has (`profile`). The offset of a row is its number within its shard.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import torch
from jaxtyping import Bool, Float, Float32, Int
from torch import Tensor
from torch.nn import functional as F

from bergson_core.search.bit_planes import BitPlanes
from bergson_core.search.features import reciprocal_by_module
from bergson_core.search.profile import Profile
from bergson_core.shards.shard import Shard
from bergson_core.utils.background import stop_if_abandoned

_ROW_CHUNK_SIZE: Final = 1024
_PRECONDITIONED_ROWS: Final = 16
"""Rows that are multiplied with C^-½ together."""
_FEATURE_CHUNK_NUMBERS: Final = 2**21
"""Numbers of φ that are in memory at a time: 8 MiB."""


@dataclass(frozen=True)
class StoredRow:
    """A row [m, d] as it comes back from disk, and the weights [m, d] whose products with it sum to its score."""

    row: Float32[Tensor, "m d"]
    weights: Float32[Tensor, "m d"]


@dataclass(frozen=True)
class ExactScorer:
    """Computes the scores, under one profile, of rows of these shards."""

    shards: Sequence[Shard]
    profile: Profile

    def module_scores(
        self,
        weights: Float32[Tensor, "m d"],
        shard_numbers: Int[np.ndarray, " k"],
        offsets: Int[np.ndarray, " k"],
    ) -> Float32[Tensor, "k m"]:
        """Returns the part of each module in the score of each row; the parts of a row sum to its score.

        The score of a row does not depend on the other rows, not even in its rounding.

        Args:
            weights: Weights [m, d] of one query, from `Profile.prepare_queries`.
            shard_numbers: For each row [k] the position of its shard in `shards`.
            offsets: For each row [k] its number within its shard.
        """
        blocks, scales, lengths = self._read_rows(shard_numbers, offsets)
        products = self.shards[0].shape.codec.block_products(blocks, scales, weights)
        return products * reciprocal_by_module(torch.from_numpy(lengths), products.shape[1])

    def may_be_best(
        self,
        query: BitPlanes,
        sign: int,
        shard_numbers: Int[np.ndarray, " k"],
        offsets: Int[np.ndarray, " k"],
        count: int,
    ) -> Bool[np.ndarray, " k"]:
        """Returns which of these sign rows may be among the `count` whose score times `sign` is highest.

        It tells most that cannot, in much less time than their exact scores take.

        Args:
            query: The rounded weights of one query.
            sign: 1, or -1 for the lowest scores.
            shard_numbers: For each row [k] the position of its shard in `shards`.
            offsets: For each row [k] its number within its shard.
            count: How many rows are looked for.
        """
        if len(offsets) <= count:
            return np.ones(len(offsets), dtype=bool)
        blocks, scales, _ = self._read_rows(shard_numbers, offsets)
        scores = sign * query.scores(blocks, scales)
        return scores >= np.partition(scores, -count)[-count] - 2 * query.error

    def stored_rows(
        self,
        weights: Float32[Tensor, "m d"],
        shard_numbers: Int[np.ndarray, " k"],
        offsets: Int[np.ndarray, " k"],
    ) -> list[StoredRow]:
        """Returns the rows themselves with their weights, from which a score can be split further than by module.

        The arguments are those of `module_scores`. The weights that are returned are divided by the row's lengths.
        """
        blocks, scales, lengths = self._read_rows(shard_numbers, offsets)
        rows = self.shards[0].shape.codec.decode(blocks, scales, weights.shape[1])
        reciprocals = reciprocal_by_module(torch.from_numpy(lengths), len(weights))[..., None]
        return [
            StoredRow(row, weights * reciprocal) for row, reciprocal in zip(rows, reciprocals, strict=True)
        ]

    def iter_features(
        self, shard_numbers: Int[np.ndarray, " k"], offsets: Int[np.ndarray, " k"]
    ) -> Iterator[Float32[Tensor, "_ m d"]]:
        """Yields φ of rows in their order, some rows at a time; it does not depend on the other rows.

        Args:
            shard_numbers: For each row [k] the position of its shard in `shards`.
            offsets: For each row [k] its number within its shard.
        """
        shape = self.shards[0].shape
        pieces = max(1, _FEATURE_CHUNK_NUMBERS // (_PRECONDITIONED_ROWS * shape.modules * shape.width))
        size = pieces * _PRECONDITIONED_ROWS
        for start in range(0, len(offsets), size):
            chunk = slice(start, start + size)
            blocks, scales, lengths = self._read_rows(shard_numbers[chunk], offsets[chunk])
            rows = self._precondition(shape.codec.decode(blocks, scales, shape.width))
            yield rows * reciprocal_by_module(torch.from_numpy(lengths), rows.shape[1])[..., None]

    def _precondition(self, rows: Float32[Tensor, "k m d"]) -> Float32[Tensor, "k m d"]:
        """Returns C^-½ times each row. Its rounding does not depend on the other rows."""
        preconditioner = self.profile.weight_preconditioner
        if preconditioner is None:
            return rows
        # The rounding of a matrix product depends on its size, so that all pieces have the same.
        pieces = rows.split(_PRECONDITIONED_ROWS)
        padded = (F.pad(piece, (0, 0, 0, 0, 0, _PRECONDITIONED_ROWS - len(piece))) for piece in pieces)
        return torch.cat([preconditioner.apply(piece) for piece in padded])[: len(rows)]

    def score_range(
        self, shard_number: int, offsets: slice, weights: Float[Tensor, "D q"]
    ) -> Float[Tensor, "n q"]:
        """Returns the scores of consecutive rows of one shard with each query, as one matrix product.

        It is faster than `module_scores` for many rows, but its rounding depends on which rows are scored together.

        Args:
            shard_number: Position of the shard in `shards`.
            offsets: Which of its rows.
            weights: Weights of all queries, one column per query.
        """
        lengths = torch.from_numpy(np.array(self.profile.lengths[shard_number][offsets]))
        rows = self.shards[shard_number].rows(offsets)
        reciprocals = reciprocal_by_module(lengths, rows.shape[1])
        if reciprocals.shape[1] == 1:
            return rows.flatten(1) @ weights * reciprocals
        return (rows * reciprocals[..., None]).flatten(1) @ weights

    def iter_scores(self, weights: Float[Tensor, "q m d"]) -> Iterator[tuple[int, Float[Tensor, "q n"]]]:
        """Yields the scores of all rows, some rows at a time: (number of the first of them, scores [q, n]).

        Args:
            weights: Weights of the queries, from `Profile.prepare_queries`.
        """
        query_columns = weights.flatten(1).float().mT
        for shard_number, shard in enumerate(self.shards):
            for start in range(0, shard.entry.rows, _ROW_CHUNK_SIZE):
                stop_if_abandoned()
                scores = self.score_range(shard_number, slice(start, start + _ROW_CHUNK_SIZE), query_columns)
                yield shard.entry.first_row + start, scores.mT

    def _read_rows(
        self, shard_numbers: np.ndarray, offsets: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Returns (blocks, scales, lengths [k, c]) of these rows, copied from the memory maps."""

        def mapped_arrays(shard_number: int) -> tuple[np.ndarray, ...]:
            shard = self.shards[shard_number]
            return shard.blocks, shard.scales, self.profile.lengths[shard_number]

        blocks, scales, lengths = (
            np.empty((len(offsets), *mapped.shape[1:]), mapped.dtype) for mapped in mapped_arrays(0)
        )
        for shard_number in np.unique(shard_numbers):
            in_shard = shard_numbers == shard_number
            for copied, mapped in zip((blocks, scales, lengths), mapped_arrays(shard_number), strict=True):
                copied[in_shard] = mapped[offsets[in_shard]]
        return blocks, scales, lengths
