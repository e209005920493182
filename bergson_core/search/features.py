"""φ (`phi`), the feature vector by which rows are compared: the preconditioned row, divided by its length.

    φ = C^-½ row / length        0 where the length is 0

C is the preconditioner's second moment; which length it is divided by is `ScoringSpec.normalize`. The inner product of
a query's φ and a row's φ is the row's score (`exact_scores`).

Legend: n rows of a shard, m modules, d numbers per module, D = m·d; c is the number of lengths that a row has: m with
`normalize="block"`, else 1.
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
    rows: Float[Tensor, "n m d"], preconditioner: Preconditioner | None, normalize: Normalize
) -> tuple[Float[Tensor, "n D"], Float[Tensor, "n c"]]:
    """Returns φ of each row, and the lengths that the preconditioned row was divided by.

    Args:
        rows: Raw rows [n, m, d], as they are stored.
        preconditioner: C^-½ of each module, or None for rows that are not preconditioned.
        normalize: `none`: the lengths are 1. `row`: φ has unit length. `block`: each of the m blocks of φ has the
            length 1/√m, so that the inner product of two φ is the mean of their modules' cosines.

    Returns:
        (φ [n, D], lengths [n, c]).
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
    """Yields what `compute_features` returns for the rows of a shard in order, 1,024 rows at a time."""
    for start in range(0, shard.entry.rows, _ROW_CHUNK_SIZE):
        stop_if_abandoned()
        yield compute_features(shard.rows(slice(start, start + _ROW_CHUNK_SIZE)), preconditioner, normalize)


def reciprocal_or_zero(lengths: Float[Tensor, "*n"]) -> Float[Tensor, "*n"]:
    """Returns 1 / length, or 0 where the length is 0."""
    return torch.where(lengths > 0, 1 / lengths, 0)
