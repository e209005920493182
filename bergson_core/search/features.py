"""φ (`phi`), the feature vector by which rows are compared: the preconditioned row, divided by its length.

    φ = C^-½ row / length        0 where the length is 0

C is the preconditioner's second moment; which length it is divided by is `ScoringSpec.normalize`. The inner product of
a query's φ and a row's φ is the row's score (`exact_scores`).

Where an index has several checkpoints, a row consists of as many rows, one after the other, and its score is the mean
of theirs.

Legend: n rows of a shard, m modules of all checkpoints, d numbers per module, D = m·d; c is the number of lengths that
a row has: m with `normalize="block"`, one for each checkpoint with `row`, and 1 with `none`.
"""

from collections.abc import Iterator
from typing import Final

import torch
from jaxtyping import Float
from torch import Tensor

from bergson_core.gradients.preconditioner import Preconditioner
from bergson_core.schemas.build import Normalize
from bergson_core.shards.shard import Shard
from bergson_core.utils.background import stop_if_abandoned

_ROW_CHUNK_SIZE: Final = 1024


def compute_features(
    rows: Float[Tensor, "n m d"],
    preconditioner: Preconditioner | None,
    normalize: Normalize,
    checkpoints: int = 1,
) -> tuple[Float[Tensor, "n D"], Float[Tensor, "n c"]]:
    """Returns φ of each row, and the lengths that the preconditioned row was divided by.

    Args:
        rows: Raw rows [n, m, d], as they are stored.
        preconditioner: C^-½ of each module, or None for rows that are not preconditioned.
        normalize: `none`: the lengths are 1. `row`: φ has unit length. `block`: each of the m blocks of φ has the
            length 1/√m, so that the inner product of two φ is the mean of their modules' cosines.
        checkpoints: Number C of checkpoints that a row has parts of. With `row`, each part of φ has the length 1/√C,
            and with `none` all lengths are √C, so that the inner product of two φ is a mean over the checkpoints.

    Returns:
        (φ [n, D], lengths [n, c]).
    """
    phi = preconditioner.apply(rows) if preconditioner else rows
    if normalize == "block":
        lengths = torch.linalg.vector_norm(phi, dim=2) * phi.shape[1] ** 0.5
    elif normalize == "row":
        parts = phi.unflatten(1, (checkpoints, -1))
        lengths = torch.linalg.vector_norm(parts, dim=(2, 3)) * checkpoints**0.5
    else:
        lengths = phi.new_full((len(phi), 1), checkpoints**0.5)
    return (phi * reciprocal_by_module(lengths, phi.shape[1])[..., None]).flatten(1), lengths


def iter_shard_features(
    shard: Shard, preconditioner: Preconditioner | None, normalize: Normalize, checkpoints: int = 1
) -> Iterator[tuple[Float[Tensor, "n D"], Float[Tensor, "n c"]]]:
    """Yields what `compute_features` returns for the rows of a shard in order, 1,024 rows at a time."""
    for start in range(0, shard.entry.rows, _ROW_CHUNK_SIZE):
        stop_if_abandoned()
        rows = shard.rows(slice(start, start + _ROW_CHUNK_SIZE))
        yield compute_features(rows, preconditioner, normalize, checkpoints)


def reciprocal_or_zero(lengths: Float[Tensor, "*n"]) -> Float[Tensor, "*n"]:
    """Returns 1 / length, or 0 where the length is 0."""
    return torch.where(lengths > 0, 1 / lengths, 0)


def reciprocal_by_module(lengths: Float[Tensor, "n c"], modules: int) -> Float[Tensor, "n _"]:
    """Returns 1 / length for each module [n, m], or [n, 1] where all modules have the same; 0 where the length is 0."""
    reciprocals = reciprocal_or_zero(lengths)
    if reciprocals.shape[1] == 1:
        return reciprocals
    return reciprocals.repeat_interleave(modules // reciprocals.shape[1], dim=1)
