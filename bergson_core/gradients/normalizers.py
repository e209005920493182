"""Second-moment normalizers: what a gradient is divided by, before it is projected.

Legend: n samples, s positions, o output features, i input features, p projected; a activations [n, s, i], g output
gradients [n, s, o], G = Σ_s g_s a_sᵀ [o, i] the gradient of one sample.

A normalizer that factorises over the two sides is folded into the projections L [p, o] and R [p, i], so that
L G Rᵀ is normalized and G is never formed. `moments` are sums over samples; `KINDS` says how they are fitted.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final, final

import torch
from jaxtyping import Float, Int
from torch import Tensor

from bergson_core.gradients.matrix_root import EighFunction, inverse_root

DAMPING: Final = 1e-4
"""Added to a second moment, in units of its mean: a unit that was silent in the sample is not blown up."""
KFAC_DAMPING: Final = 1e-3
"""Added to the eigenvalues of both factors, in units of their mean."""
_GRAM_POSITIONS: Final = 512
"""Rows of the s × s Gram matrices formed at a time."""


class Normalizer(ABC):
    """Divides the gradient of one layer by the root of a second moment."""

    @abstractmethod
    def apply(self, gradients: Float[Tensor, "n o i"]) -> Float[Tensor, "n o i"]:
        """The normalized gradients."""

    @abstractmethod
    def tensors(self) -> dict[str, Tensor]:
        """What to save; `from_tensors` is the inverse."""


class FactoredNormalizer(Normalizer):
    """One that factorises over the two sides."""

    @abstractmethod
    def fold(
        self, left: Float[Tensor, "p o"], right: Float[Tensor, "p i"]
    ) -> tuple[Float[Tensor, "p o"], Float[Tensor, "p i"]]:
        """(L', R') such that L' G R'ᵀ is L normalized(G) Rᵀ."""


@final
@dataclass(frozen=True)
class AdafactorNormalizer(FactoredNormalizer):
    """V̂ = r cᵀ / mean(r) (Shazeer and Stern, arXiv 1804.04235, algorithm 2).

    `row` [o] and `column` [i] are the means of the mean squared per-sample gradient over the other side.
    """

    row: Tensor
    column: Tensor

    def apply(self, gradients: Tensor) -> Tensor:
        row, column = (scale.to(gradients) for scale in self._scales())
        return gradients * row[:, None] * column

    def fold(self, left: Tensor, right: Tensor) -> tuple[Tensor, Tensor]:
        row, column = self._scales()
        return left * row, right * column

    def tensors(self) -> dict[str, Tensor]:
        return {"row": self.row, "column": self.column}

    def _scales(self) -> tuple[Tensor, Tensor]:
        """(√mean(r) r^-½ [o], c^-½ [i])."""
        row, column = _damped(self.row), _damped(self.column)
        return (row.mean() / row).sqrt(), column.rsqrt()


@final
@dataclass(frozen=True)
class KfacNormalizer(FactoredNormalizer):
    """S^-½ G A^-½, K-FAC's approximation of the Fisher information (Martens and Grosse, arXiv 1503.05671).

    S = E[g gᵀ] and A = E[a aᵀ], over the positions that the loss depends on; both damped by `KFAC_DAMPING`. Kept are
    `output_root` = S^-½ [o, o] and `activation_root` = A^-½ [i, i], or its diagonal [i] for an embedding, whose
    inputs are one-hot.
    """

    output_root: Tensor
    activation_root: Tensor

    def apply(self, gradients: Tensor) -> Tensor:
        return self._right(self.output_root.to(gradients) @ gradients)

    def fold(self, left: Tensor, right: Tensor) -> tuple[Tensor, Tensor]:
        return left @ self.output_root.to(left), self._right(right)

    def _right(self, matrix: Tensor) -> Tensor:
        root = self.activation_root.to(matrix)
        return matrix * root if root.dim() == 1 else matrix @ root

    def tensors(self) -> dict[str, Tensor]:
        return {"output_root": self.output_root, "activation_root": self.activation_root}


@final
@dataclass(frozen=True)
class AdamNormalizer(Normalizer):
    """V [o, i], the mean squared per-sample gradient (Kingma and Ba, arXiv 1412.6980)."""

    second_moment: Tensor

    def apply(self, gradients: Tensor) -> Tensor:
        return gradients * _damped(self.second_moment).rsqrt().to(gradients)

    def tensors(self) -> dict[str, Tensor]:
        return {"second_moment": self.second_moment}


def _damped(moment: Tensor) -> Tensor:
    """Positive wherever any entry is; all ones for a layer whose gradients were all zero."""
    mean = moment.mean()
    return moment + DAMPING * mean if mean > 0 else torch.ones_like(moment)


def normalizer_from_tensors(tensors: dict[str, Tensor]) -> Normalizer:
    """The inverse of `Normalizer.tensors`."""
    for kind in (AdafactorNormalizer, KfacNormalizer, AdamNormalizer):
        if tensors.keys() == kind.__annotations__.keys():
            return kind(**tensors)
    raise ValueError(f"no normalizer has the tensors {', '.join(tensors)}")


def adafactor_moments(
    a: Float[Tensor, "n s i"], g: Float[Tensor, "n s o"]
) -> tuple[Float[Tensor, " o"], Float[Tensor, " i"]]:
    """(Σ_n mean_i G², Σ_n mean_o G²), [o] and [i], without forming any G.

    Σ_i G_oi² = Σ_st g_so (a_s · a_t) g_to, so that the Gram matrices of the positions are enough.
    """
    row = g.new_zeros(g.shape[-1])
    column = a.new_zeros(a.shape[-1])
    for start in range(0, a.shape[1], _GRAM_POSITIONS):
        part = slice(start, start + _GRAM_POSITIONS)
        row += (g[:, part] * (a[:, part] @ a.mT @ g)).sum((0, 1))
        column += (a[:, part] * (g[:, part] @ g.mT @ a)).sum((0, 1))
    return row.clamp_min(0) / a.shape[-1], column.clamp_min(0) / g.shape[-1]


def adam_moments(a: Float[Tensor, "n s i"], g: Float[Tensor, "n s o"]) -> tuple[Float[Tensor, "o i"]]:
    """(Σ_n G²,) [o, i], one sample's gradient at a time."""
    total = g.new_zeros(g.shape[-1], a.shape[-1])
    for a_n, g_n in zip(a, g, strict=True):
        total += (g_n.mT @ a_n).square_()
    return (total,)


def kfac_moments(
    a: Float[Tensor, "n s i"], g: Float[Tensor, "n s o"]
) -> tuple[Float[Tensor, "o o"], Float[Tensor, "i i"], Float[Tensor, ""]]:
    """(Σ g gᵀ, Σ a aᵀ, their number) over the positions with a gradient: neither padding nor beyond the last label."""
    seen = (g != 0).any(-1)
    a, g = a[seen], g[seen]
    return g.mT @ g, a.mT @ a, seen.sum().to(g)


def adafactor_token_moments(
    tokens: Int[Tensor, "n s"], g: Float[Tensor, "n s o"], vocabulary: int
) -> tuple[Float[Tensor, " o"], Float[Tensor, " v"]]:
    """`adafactor_moments` of an embedding, whose activations are one-hot [n, s, v] and never formed."""
    row, column = g.new_zeros(g.shape[-1]), g.new_zeros(vocabulary)
    for seen, gradient in _by_token(tokens, g):
        square = gradient.square()
        row += square.sum(0) / vocabulary
        column[seen] += square.mean(1)
    return row, column


def adam_token_moments(
    tokens: Int[Tensor, "n s"], g: Float[Tensor, "n s o"], vocabulary: int
) -> tuple[Float[Tensor, "o v"]]:
    """`adam_moments` of an embedding."""
    total = g.new_zeros(g.shape[-1], vocabulary)
    for seen, gradient in _by_token(tokens, g):
        total[:, seen] += gradient.square().mT
    return (total,)


def kfac_token_moments(
    tokens: Int[Tensor, "n s"], g: Float[Tensor, "n s o"], vocabulary: int
) -> tuple[Float[Tensor, "o o"], Float[Tensor, " v"], Float[Tensor, ""]]:
    """`kfac_moments` of an embedding; Σ a aᵀ is diagonal, and its diagonal returned."""
    seen = (g != 0).any(-1)
    tokens, g = tokens[seen], g[seen]
    return g.mT @ g, tokens.bincount(minlength=vocabulary).to(g), seen.sum().to(g)


def _by_token(
    tokens: Int[Tensor, "n s"], g: Float[Tensor, "n s o"]
) -> Iterator[tuple[Int[Tensor, " u"], Float[Tensor, "u o"]]]:
    """For each sample the tokens that it has, and the columns of its gradient that are theirs."""
    for tokens_n, g_n in zip(tokens, g, strict=True):
        seen, places = tokens_n.unique(return_inverse=True)
        yield seen, g.new_zeros(len(seen), g.shape[-1]).index_add_(0, places, g_n)


def append_bias_input(a: Float[Tensor, "n s i"]) -> Float[Tensor, "n s i+1"]:
    """Activations [n, s, i] with a column of ones [n, s, i + 1]: the bias as one more input."""
    return torch.cat([a, a.new_ones(*a.shape[:-1], 1)], dim=-1)


def _make_kfac(sums: Sequence[Tensor], samples: int, eigh: EighFunction) -> KfacNormalizer:
    output, activation, positions = sums
    output, activation = (total.cpu() / positions.cpu().clamp_min(1) for total in (output, activation))
    return KfacNormalizer(_kfac_root(output, eigh), _kfac_root(activation, eigh))


def _kfac_root(moment: Tensor, eigh: EighFunction) -> Tensor:
    """Returns the damped inverse root of a matrix [d, d], or of a diagonal [d]."""
    if moment.dim() == 2:
        return inverse_root(moment, KFAC_DAMPING, eigh).to(moment.dtype)
    mean = moment.mean()
    return (moment + KFAC_DAMPING * mean).rsqrt() if mean > 0 else torch.zeros_like(moment)


@dataclass(frozen=True)
class NormalizerFunctions:
    """How a normalizer is fitted.

    moments        sums over a batch, from a [n, s, i] and g [n, s, o]
    token_moments  the same for an embedding, from tokens [n, s], g and the vocabulary's size
    make           the normalizer, from the sums, the number of samples, and the eigendecomposition to use
    """

    moments: Callable[[Tensor, Tensor], Sequence[Tensor]]
    token_moments: Callable[[Tensor, Tensor, int], Sequence[Tensor]]
    make: Callable[[Sequence[Tensor], int, EighFunction], Normalizer]


NORMALIZERS: Final = {
    "adafactor": NormalizerFunctions(
        adafactor_moments,
        adafactor_token_moments,
        lambda sums, samples, _eigh: AdafactorNormalizer(*(total.cpu() / samples for total in sums)),
    ),
    "adam": NormalizerFunctions(
        adam_moments, adam_token_moments, lambda sums, samples, _eigh: AdamNormalizer(sums[0].cpu() / samples)
    ),
    "kfac": NormalizerFunctions(kfac_moments, kfac_token_moments, _make_kfac),
}
