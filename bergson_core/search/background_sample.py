"""The background sample: random rows of an index, whose scores for a query show how high a result's score is.

Legend: q queries, r sampled rows, v sampled rows that are visible, n rows of a shard, m modules, d numbers per module.
The offset of a row is its number within its shard.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import torch
from jaxtyping import Float, Float32, Int
from torch import Tensor

from bergson_core.gradients.processor_fitting import sample_row_numbers
from bergson_core.search.features import reciprocal_or_zero
from bergson_core.search.profile import Profile
from bergson_core.shards.shard import Shard

MAX_SAMPLE_ROWS: Final = 4096
MAX_SAMPLE_NUMBERS: Final = 2**23
"""Numbers of all sampled rows together: 32 MiB of float32, which a query reads in about a millisecond."""
MIN_SAMPLE_ROWS: Final = 64
"""At least this many rows are sampled, however many numbers each of them has."""
_RELATIVE_TOLERANCE: Final = 1e-5
"""Smallest relative difference at which two scores count as different. A result may be one of the sampled rows, whose
score is computed in another order and so rounded differently."""


@dataclass(frozen=True)
class BackgroundSample:
    """The sampled rows that lie in some shards of an index.

    Attributes:
        blocks: The rows [m, r, d], as they come back from disk.
        shard_numbers: For each row [r] the position of its shard among these shards.
        offsets: For each row [r] its number within its shard.
    """

    blocks: Float32[Tensor, "m r d"]
    shard_numbers: Int[np.ndarray, " r"]
    offsets: Int[np.ndarray, " r"]

    @classmethod
    def read(cls, shards: Sequence[Shard], total_rows: int, seed: int) -> "BackgroundSample":
        """Reads the sampled rows of an index that lie in these of its shards.

        The size of the index and the seed alone decide which rows are sampled. So actors that hold some of the shards
        each read their share of the same sample, and appended documents are sampled like all others.

        Args:
            shards: The shards to read from.
            total_rows: Number of rows in the whole index.
            seed: Seed of the sample.
        """
        shape = shards[0].shape
        size = max(MIN_SAMPLE_ROWS, min(MAX_SAMPLE_ROWS, MAX_SAMPLE_NUMBERS // (shape.modules * shape.width)))
        row_numbers = np.array(sample_row_numbers(total_rows, size, seed))
        rows, shard_numbers, offsets = [], [], []
        for shard_number, shard in enumerate(shards):
            in_shard = shard.offsets_of(row_numbers)
            rows.append(shard.rows(in_shard))
            shard_numbers.append(np.full(len(in_shard), shard_number))
            offsets.append(in_shard)
        return cls(
            blocks=torch.cat(rows).transpose(0, 1).contiguous(),
            shard_numbers=np.concatenate(shard_numbers),
            offsets=np.concatenate(offsets),
        )

    def scores(
        self,
        profile: Profile,
        weights: Float[Tensor, "q m d"],
        visible: Sequence[np.ndarray | None],
    ) -> Float32[np.ndarray, "q v"]:
        """Returns the scores [q, v] of the sampled rows that are visible.

        Args:
            profile: The profile to score under.
            weights: Weights of the queries, from `Profile.prepare_queries`.
            visible: For each shard which of its rows may be shown: bool [n], or None for all of them.
        """
        lengths = np.zeros((len(self.offsets), profile.lengths[0].shape[1]), dtype=np.float32)
        is_visible = np.ones(len(self.offsets), dtype=bool)
        for shard_number, mask in enumerate(visible):
            in_shard = self.shard_numbers == shard_number
            lengths[in_shard] = profile.lengths[shard_number][self.offsets[in_shard]]
            if mask is not None:
                is_visible[in_shard] = mask[self.offsets[in_shard]]
        products = self.blocks @ weights.permute(1, 2, 0)
        scores = (products * reciprocal_or_zero(torch.from_numpy(lengths)).mT[..., None]).sum(0)
        return scores.mT.numpy()[:, is_visible]


def percentile(score: float, background_scores: Float32[np.ndarray, " v"]) -> float | None:
    """Returns how many of a hundred random rows score lower than `score`, or None where no row was sampled.

    The v sampled rows and the result itself make v + 1 ranks, so that no result is above all rows, most of which were
    never looked at: 99.98 means above all of 4,096 sampled rows.
    """
    if len(background_scores) == 0:
        return None
    lower = background_scores < score - _RELATIVE_TOLERANCE * abs(score)
    return round(100 * float(lower.sum()) / (len(background_scores) + 1), 2)
