"""Rows of an index drawn at random: how the score of a result stands against theirs, for the query at hand.

Legend: q queries, r sampled rows, m layers, d numbers a layer; c is m where each layer's block is scaled by itself,
else 1 (`profiles`).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import torch
from jaxtyping import Float, Float32, Int
from torch import Tensor

from bergson_core.gradients.normalizer_fitting import sample_row_numbers
from bergson_core.search.features import reciprocal_or_zero
from bergson_core.search.profile import Profile
from bergson_core.shards.shard import Shard

MAX_SAMPLE_ROWS: Final = 4096
MAX_SAMPLE_NUMBERS: Final = 2**23
"""Of the sampled rows in memory, as float32: 32 MiB, which a query reads in about a millisecond."""
MIN_SAMPLE_ROWS: Final = 64
"""However many numbers each has."""
_RELATIVE_TOLERANCE: Final = 1e-5
"""By so much have scores to differ: a result may be one of the sampled rows, whose score is computed in another way."""


@dataclass(frozen=True)
class BackgroundSample:
    """The sampled rows among some shards of an index: `blocks` [m, r, d], by shard where they lie."""

    blocks: Float32[Tensor, "m r d"]
    shard_numbers: Int[np.ndarray, " r"]
    offsets: Int[np.ndarray, " r"]

    @classmethod
    def read(cls, shards: Sequence[Shard], total: int, seed: int) -> "BackgroundSample":
        """Those of an index of `total` rows that lie in these of its shards.

        Which rows of the index these are is decided by its size and seed alone: actors that hold a part of the shards
        each find their share of the same sample, and documents that were appended are in it as any others.
        """
        shape = shards[0].shape
        count = max(
            MIN_SAMPLE_ROWS, min(MAX_SAMPLE_ROWS, MAX_SAMPLE_NUMBERS // (shape.modules * shape.width))
        )
        numbers = np.array(sample_row_numbers(total, count, seed))
        found: list[tuple[Tensor, np.ndarray, np.ndarray]] = []
        for number, shard in enumerate(shards):
            places = numbers - shard.entry.first_row
            places = places[(places >= 0) & (places < shard.entry.rows)]
            found.append((shard.rows(places), np.full(len(places), number), places))
        rows, owners, places = zip(*found, strict=True)
        return cls(
            torch.cat(rows).transpose(0, 1).contiguous(), np.concatenate(owners), np.concatenate(places)
        )

    def scores(
        self,
        profile: Profile,
        weights: Float[Tensor, "q m d"],
        visible: Sequence[np.ndarray | None],
    ) -> Float32[np.ndarray, "q shown"]:
        """Scores of the sampled rows, but for those that may not be shown; `weights` are of `Profile.prepare`.

        `visible` says so of each shard: bool [n], or None for all of its rows.
        """
        lengths = np.zeros((len(self.offsets), profile.lengths[0].shape[1]), dtype=np.float32)
        shown = np.ones(len(self.offsets), dtype=bool)
        for number, mask in enumerate(visible):
            here = self.shard_numbers == number
            lengths[here] = profile.lengths[number][self.offsets[here]]
            if mask is not None:
                shown[here] = mask[self.offsets[here]]
        products = self.blocks @ weights.permute(1, 2, 0)
        scores = (products * reciprocal_or_zero(torch.from_numpy(lengths)).mT[..., None]).sum(0)
        return scores.mT.numpy()[:, shown]


def percentile(score: float, sampled: Float32[np.ndarray, " r"]) -> float | None:
    """How many of a hundred random rows score lower, for one query; None where no row was sampled.

    r rows and the result itself make r + 1 places, so that nothing stands above all rows that were never looked at:
    99.98 is above all of 4,096.
    """
    if len(sampled) == 0:
        return None
    lower = sampled < score - _RELATIVE_TOLERANCE * abs(score)
    return round(100 * float(lower.sum()) / (len(sampled) + 1), 2)
