"""TODO"""

from collections.abc import Iterator
from typing import Final

import torch
from jaxtyping import Float
from torch import Tensor

from bergson_core.gradients.preconditioner import Preconditioner
from bergson_core.schemas.build import Normalize
from bergson_core.shards.shard import Shard

_ROW_CHUNK_SIZE: Final = 1024


def compute_features(
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
    return (phi * reciprocal_or_zero(lengths)[..., None]).flatten(1), lengths


def iter_shard_features(
    shard: Shard, preconditioner: Preconditioner | None, normalize: Normalize
) -> Iterator[tuple[Float[Tensor, "n D"], Float[Tensor, "n c"]]]:
    """`features` of a shard's rows, `_AT_ONCE` at a time."""
    for start in range(0, shard.entry.rows, _ROW_CHUNK_SIZE):
        yield compute_features(shard.rows(slice(start, start + _ROW_CHUNK_SIZE)), preconditioner, normalize)


def reciprocal_or_zero(lengths: Float[Tensor, "n c"]) -> Float[Tensor, "n c"]:
    """1 / lengths, and 0 for 0."""
    return torch.where(lengths > 0, 1 / lengths, 0)
