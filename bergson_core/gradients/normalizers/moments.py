"""Second moments: the sums over samples that normalizers are fitted from.

Legend: n samples, s positions, i input features, o output features, v vocabulary, u different tokens of a sample;
a activations [n, s, i], g output gradients [n, s, o], G = Σ_s g_s a_sᵀ [o, i] the gradient of one sample.

The functions with `token` in their names are for embeddings, whose activations are token ids [n, s]: they stand for
one-hot vectors [n, s, v], which are never formed. The results are the same sums.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final, TypeAlias

import torch
from jaxtyping import Float, Int
from torch import Tensor

from bergson_core.gradients.normalizers.matrix_root import EighFunction
from bergson_core.gradients.normalizers.normalizers import (
    AdafactorNormalizer,
    AdamNormalizer,
    KfacNormalizer,
    Normalizer,
)
from bergson_core.gradients.normalizers.projected_kfac import ProjectedKfacNormalizer
from bergson_core.gradients.normalizers.side_moment import SideMoment

Sum: TypeAlias = Tensor | SideMoment
"""A sum over samples, to which `add_` adds another one."""
Projections: TypeAlias = tuple[Tensor, Tensor]
"""The projections (L [a, o], R [b, i]) of a module, in float64."""

KFAC_DAMPING: Final = 1e-3
"""Added to the eigenvalues of both of K-FAC's factors, in units of their mean."""
_GRAM_CHUNK_POSITIONS: Final = 512
"""Rows of the s × s Gram matrices that are formed at a time."""


def adafactor_moments(
    a: Float[Tensor, "n s i"], g: Float[Tensor, "n s o"]
) -> tuple[Float[Tensor, " o"], Float[Tensor, " i"]]:
    """Returns (Σ_n mean_i G², Σ_n mean_o G²), of shapes [o] and [i], without forming any G.

    Σ_i G_oi² = Σ_st g_so (a_s · a_t) g_to, so that the Gram matrices of the positions are enough.
    """
    row = g.new_zeros(g.shape[-1])
    column = a.new_zeros(a.shape[-1])
    for start in range(0, a.shape[1], _GRAM_CHUNK_POSITIONS):
        chunk = slice(start, start + _GRAM_CHUNK_POSITIONS)
        row += (g[:, chunk] * (a[:, chunk] @ a.mT @ g)).sum((0, 1))
        column += (a[:, chunk] * (g[:, chunk] @ g.mT @ a)).sum((0, 1))
    return row.clamp_min(0) / a.shape[-1], column.clamp_min(0) / g.shape[-1]


def adam_moments(a: Float[Tensor, "n s i"], g: Float[Tensor, "n s o"]) -> tuple[Float[Tensor, "o i"]]:
    """Returns (Σ_n G²,), of shape [o, i], forming one sample's gradient at a time."""
    total = g.new_zeros(g.shape[-1], a.shape[-1])
    for a_n, g_n in zip(a, g, strict=True):
        total += (g_n.mT @ a_n).square_()
    return (total,)


def kfac_moments(a: Float[Tensor, "n s i"], g: Float[Tensor, "n s o"]) -> tuple[SideMoment, SideMoment]:
    """Returns the moments (E[g gᵀ], E[a aᵀ]) over the positions that have a gradient.

    Padding has none, nor have the positions behind the last label.
    """
    has_gradient = (g != 0).any(-1)
    return SideMoment(g[has_gradient]), SideMoment(a[has_gradient])


def adafactor_token_moments(
    tokens: Int[Tensor, "n s"], g: Float[Tensor, "n s o"], vocabulary: int
) -> tuple[Float[Tensor, " o"], Float[Tensor, " v"]]:
    """Returns `adafactor_moments` of an embedding, of shapes [o] and [v]."""
    row, column = g.new_zeros(g.shape[-1]), g.new_zeros(vocabulary)
    for ids, columns in _gradient_columns(tokens, g):
        square = columns.square()
        row += square.sum(0) / vocabulary
        column[ids] += square.mean(1)
    return row, column


def adam_token_moments(
    tokens: Int[Tensor, "n s"], g: Float[Tensor, "n s o"], vocabulary: int
) -> tuple[Float[Tensor, "o v"]]:
    """Returns `adam_moments` of an embedding, of shape [o, v]."""
    total = g.new_zeros(g.shape[-1], vocabulary)
    for ids, columns in _gradient_columns(tokens, g):
        total[:, ids] += columns.square().mT
    return (total,)


def kfac_token_moments(
    tokens: Int[Tensor, "n s"], g: Float[Tensor, "n s o"], vocabulary: int
) -> tuple[SideMoment, Float[Tensor, " v"]]:
    """Returns E[g gᵀ] as `kfac_moments` does, and of Σ a aᵀ, which is diagonal for an embedding, the diagonal [v]."""
    has_gradient = (g != 0).any(-1)
    tokens, g = tokens[has_gradient], g[has_gradient]
    return SideMoment(g), tokens.bincount(minlength=vocabulary).to(g)


def _gradient_columns(
    tokens: Int[Tensor, "n s"], g: Float[Tensor, "n s o"]
) -> Iterator[tuple[Int[Tensor, " u"], Float[Tensor, "u o"]]]:
    """Yields for each sample the ids of its tokens, and the columns of its gradient that belong to them."""
    for tokens_n, g_n in zip(tokens, g, strict=True):
        ids, columns = tokens_n.unique(return_inverse=True)
        yield ids, g.new_zeros(len(ids), g.shape[-1]).index_add_(0, columns, g_n)


@dataclass(frozen=True)
class NormalizerFitter:
    """How one kind of normalizer is fitted.

    Attributes:
        moments: Returns sums over a batch, from a [n, s, i] and g [n, s, o].
        token_moments: Returns the same for an embedding, from tokens [n, s], g and the vocabulary's size.
        make: Returns the normalizer, from the sums, the number of samples in them, the projections that it is for, and
            the eigendecomposition to use. Without projections, the normalizer is for whole gradients and for any.
    """

    moments: Callable[[Tensor, Tensor], Sequence[Sum]]
    token_moments: Callable[[Tensor, Tensor, int], Sequence[Sum]]
    make: Callable[[Sequence[Any], int, Projections | None, EighFunction], Normalizer]


def _make_adafactor(
    sums: Sequence[Tensor], samples: int, _projections: Projections | None, _eigh: EighFunction
) -> AdafactorNormalizer:
    return AdafactorNormalizer(*(total.cpu() / samples for total in sums))


def _make_adam(
    sums: Sequence[Tensor], samples: int, _projections: Projections | None, _eigh: EighFunction
) -> AdamNormalizer:
    return AdamNormalizer(sums[0].cpu() / samples)


def _make_kfac(
    sums: Sequence[Any], _samples: int, projections: Projections | None, eigh: EighFunction
) -> Normalizer:
    output: SideMoment = sums[0]

    def root_of(moment: Sum, projection: Tensor | None) -> Tensor:
        if isinstance(moment, SideMoment):
            projection = torch.eye(moment.features, dtype=torch.float64) if projection is None else projection
            return moment.root_product(projection, KFAC_DAMPING, eigh)
        return _diagonal_root(moment.cpu().double() / max(1, output.count))

    roots = [
        root_of(moment, projection).to(output.dtype)
        for moment, projection in zip(sums, projections or (None, None), strict=True)
    ]
    if projections is None:
        return KfacNormalizer(*roots)
    starts = (projection[:, 0].to(output.dtype, copy=True) for projection in projections)
    return ProjectedKfacNormalizer(roots[0], next(starts), roots[1], next(starts))


def _diagonal_root(moment: Float[Tensor, " d"]) -> Float[Tensor, " d"]:
    """Returns the damped inverse root of a diagonal."""
    mean = moment.mean()
    return (moment + KFAC_DAMPING * mean).rsqrt() if mean > 0 else torch.zeros_like(moment)


NORMALIZER_FITTERS: Final = {
    "adafactor": NormalizerFitter(adafactor_moments, adafactor_token_moments, _make_adafactor),
    "adam": NormalizerFitter(adam_moments, adam_token_moments, _make_adam),
    "kfac": NormalizerFitter(kfac_moments, kfac_token_moments, _make_kfac),
}
