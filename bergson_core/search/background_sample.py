"""The background sample: random rows of an index, whose scores for a query show how high a result's score is.

Legend: q queries, r sampled rows, v sampled rows that are visible, n rows of a shard, m modules, d numbers per module,
w bytes that are stored of a block of signs, c lengths of a row. The offset of a row is its number within its shard.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import torch
from jaxtyping import Float, Float32, Int, UInt8
from torch import Tensor

from bergson_core.gradients.processor_fitting import sample_row_numbers
from bergson_core.schemas.answer_parts.background import BackgroundScores
from bergson_core.search.bit_planes import BitPlanes
from bergson_core.search.features import reciprocal_by_module
from bergson_core.search.profile import Profile
from bergson_core.shards.shard import Shard

MAX_SAMPLE_ROWS: Final = 4096
MAX_SAMPLE_BYTES: Final = 2**27
"""Memory of all sampled rows together, which a query reads in some milliseconds."""
MIN_SAMPLE_ROWS: Final = 64
"""At least this many rows are sampled, however many numbers each of them has."""
HISTOGRAM_BINS: Final = 100
_RELATIVE_TOLERANCE: Final = 1e-5
"""Smallest relative difference at which two scores count as different. A result may be one of the sampled rows, whose
score is computed in another order and so rounded differently."""


@dataclass(frozen=True)
class _DecodedRows:
    """Rows of numbers, as they come back from disk."""

    blocks: Float32[Tensor, "m r d"]

    @classmethod
    def read(cls, shards: Sequence[Shard], offsets: Sequence[Int[np.ndarray, " _"]]) -> "_DecodedRows":
        rows = [shard.rows(in_shard) for shard, in_shard in zip(shards, offsets, strict=True)]
        return cls(torch.cat(rows).transpose(0, 1).contiguous())

    def scores(
        self,
        weights: Float[Tensor, "q m d"],
        lengths: Float32[Tensor, "r c"],
        rounded: Sequence[BitPlanes] | None,
    ) -> Float32[Tensor, "q r"]:
        products = self.blocks @ weights.permute(1, 2, 0)
        return (products * reciprocal_by_module(lengths, len(products)).mT[..., None]).sum(0).mT


@dataclass(frozen=True)
class _SignRows:
    """Rows of signs, as they are stored, whose scores are taken as high as their error allows (`bit_planes`).

    So a row counts as no lower than a result that scores the same, or that it is itself. All lengths are 1.
    """

    blocks: UInt8[np.ndarray, "r m w"]
    scales: UInt8[np.ndarray, "r _"]

    @classmethod
    def read(cls, shards: Sequence[Shard], offsets: Sequence[Int[np.ndarray, " _"]]) -> "_SignRows":
        pairs = list(zip(shards, offsets, strict=True))
        return cls(
            np.concatenate([shard.blocks[in_shard] for shard, in_shard in pairs]),
            np.concatenate([shard.scales[in_shard] for shard, in_shard in pairs]),
        )

    def scores(
        self,
        weights: Float[Tensor, "q m d"],
        lengths: Float32[Tensor, "r c"],
        rounded: Sequence[BitPlanes] | None,
    ) -> Float32[Tensor, "q r"]:
        queries = rounded or [BitPlanes.of(query) for query in weights]
        scores = [query.scores(self.blocks, self.scales) + query.error for query in queries]
        return torch.from_numpy(np.stack(scores))


@dataclass(frozen=True)
class BackgroundSample:
    """The sampled rows that lie in some shards of an index.

    Attributes:
        rows: The rows.
        shard_numbers: For each row [r] the position of its shard among these shards.
        offsets: For each row [r] its number within its shard.
    """

    rows: _DecodedRows | _SignRows
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
        row_bytes = shape.row_bytes if shape.kind == "sign" else 4 * shape.modules * shape.width
        size = max(MIN_SAMPLE_ROWS, min(MAX_SAMPLE_ROWS, MAX_SAMPLE_BYTES // row_bytes))
        row_numbers = np.array(sample_row_numbers(total_rows, size, seed))
        offsets = [shard.offsets_of(row_numbers) for shard in shards]
        return cls(
            rows=(_SignRows if shape.kind == "sign" else _DecodedRows).read(shards, offsets),
            shard_numbers=np.repeat(np.arange(len(shards)), [len(in_shard) for in_shard in offsets]),
            offsets=np.concatenate(offsets),
        )

    def scores(
        self,
        profile: Profile,
        weights: Float[Tensor, "q m d"],
        visible: Sequence[np.ndarray | None],
        rounded: Sequence[BitPlanes] | None = None,
    ) -> Float32[np.ndarray, "q v"]:
        """Returns the scores [q, v] of the sampled rows that are visible.

        Args:
            profile: The profile to score under.
            weights: Weights of the queries, from `Profile.prepare_queries`.
            visible: For each shard which of its rows may be shown: bool [n], or None for all of them.
            rounded: The rounded weights of the queries, where rows are signs; None rounds them.
        """
        lengths = np.zeros((len(self.offsets), profile.lengths[0].shape[1]), dtype=np.float32)
        is_visible = np.ones(len(self.offsets), dtype=bool)
        for shard_number, mask in enumerate(visible):
            in_shard = self.shard_numbers == shard_number
            lengths[in_shard] = profile.lengths[shard_number][self.offsets[in_shard]]
            if mask is not None:
                is_visible[in_shard] = mask[self.offsets[in_shard]]
        return self.rows.scores(weights, torch.from_numpy(lengths), rounded).numpy()[:, is_visible]


def percentiles(scores: Sequence[float], background_scores: Float32[np.ndarray, " v"]) -> list[float | None]:
    """Returns how many of a hundred random rows score lower than each score, or None where no row was sampled.

    The v sampled rows and the result itself make v + 1 ranks, so that no result is above all rows, most of which were
    never looked at: 99.98 means above all of 4,096 sampled rows.
    """
    if len(background_scores) == 0:
        return [None] * len(scores)
    ordered = np.sort(background_scores)
    clearly_lower = [score - _RELATIVE_TOLERANCE * abs(score) for score in scores]
    lower = np.searchsorted(ordered, np.asarray(clearly_lower, ordered.dtype), side="left")
    return [round(100 * int(count) / (len(ordered) + 1), 2) for count in lower]


def score_histogram(background_scores: Float32[np.ndarray, " v"]) -> BackgroundScores | None:
    """Returns how the scores of the sampled rows are distributed, or None where no row was sampled."""
    if len(background_scores) == 0:
        return None
    counts, edges = np.histogram(background_scores.astype(np.float64), HISTOGRAM_BINS)
    return BackgroundScores(edges=edges.tolist(), counts=counts.tolist())
