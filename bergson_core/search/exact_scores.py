"""Exact scores of rows from what is stored of them, and the parts that a score is made of.

Legend: k rows, m layers, d numbers a layer; c is m where each layer's block is scaled by itself, else 1 (`profiles`).

A score is (C^-½ φ) · row over the row's lengths, block by block: it is linear in the row as it is stored. So it is the
sum over layers of what `layer_parts` gives, whatever the row is kept as.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float32, Int
from torch import Tensor

from bergson_core.search.features import reciprocal_or_zero
from bergson_core.search.profile import Profile
from bergson_core.shards.shard import Shard


@dataclass(frozen=True)
class StoredRow:
    """A row [m, d] as it comes back from disk, and what it is multiplied with [m, d]: the products sum to the score."""

    row: Float32[Tensor, "m d"]
    weights: Float32[Tensor, "m d"]


@dataclass(frozen=True)
class ExactScorer:
    """Scores under one profile of rows in these shards."""

    shards: Sequence[Shard]
    profile: Profile

    def module_scores(
        self, weights: Float32[Tensor, "m d"], shards: Int[np.ndarray, " k"], places: Int[np.ndarray, " k"]
    ) -> Float32[Tensor, "k m"]:
        """What each layer adds to the score of each of these rows; `weights` are of `Profile.prepare`."""
        blocks, scales, lengths = self._read(shards, places)
        raw = self.shards[0].shape.codec.products(blocks, scales, weights)
        return raw * reciprocal_or_zero(torch.from_numpy(lengths))

    def stored_rows(
        self, weights: Float32[Tensor, "m d"], shards: Int[np.ndarray, " k"], places: Int[np.ndarray, " k"]
    ) -> list[StoredRow]:
        """Each of these rows itself, to take its score apart by more than layers."""
        blocks, scales, lengths = self._read(shards, places)
        rows = self.shards[0].shape.codec.decode(blocks, scales, weights.shape[1])
        over = reciprocal_or_zero(torch.from_numpy(lengths))[..., None]
        return [StoredRow(row, weights * one) for row, one in zip(rows, over, strict=True)]

    def _read(self, shards: np.ndarray, places: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(blocks, scales, lengths [k, c]) of these rows, copied from the maps."""

        def parts(number: int) -> tuple[np.ndarray, ...]:
            shard = self.shards[number]
            return shard.blocks, shard.scales, self.profile.lengths[number]

        blocks, scales, lengths = (np.empty((len(places), *one.shape[1:]), one.dtype) for one in parts(0))
        for number in np.unique(shards):
            here = shards == number
            for kept, source in zip((blocks, scales, lengths), parts(number), strict=True):
                kept[here] = source[places[here]]
        return blocks, scales, lengths
