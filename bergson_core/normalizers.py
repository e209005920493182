"""Second-moment normalizers: what a gradient is divided by, before it is projected.

Legend: n samples, s positions, o output features, i input features, p projected; a activations [n, s, i], g output
gradients [n, s, o], G = Σ_s g_s a_sᵀ [o, i] the gradient of one sample.

A normalizer that factorises over the two sides is folded into the projections L [p, o] and R [p, i], so that
L G Rᵀ is normalized and G is never formed. `moments` are sums over samples; `KINDS` says how they are fitted.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, final

import torch
from jaxtyping import Float
from torch import Tensor

from bergson_core.preconditioners import inverse_root

DAMPING: Final = 1e-4
"""Added to a second moment, in units of its mean: a unit that was silent in the sample is not blown up."""
KFAC_DAMPING: Final = 0.1
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
    `output_root` = S^-½ [o, o] and `activation_root` = A^-½ [i, i].
    """

    output_root: Tensor
    activation_root: Tensor

    def apply(self, gradients: Tensor) -> Tensor:
        return self.output_root.to(gradients) @ gradients @ self.activation_root.to(gradients)

    def fold(self, left: Tensor, right: Tensor) -> tuple[Tensor, Tensor]:
        return left @ self.output_root.to(left), right @ self.activation_root.to(right)

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


def from_tensors(tensors: dict[str, Tensor]) -> Normalizer:
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


def with_bias(a: Float[Tensor, "n s i"]) -> Float[Tensor, "n s i+1"]:
    """Activations [n, s, i] with a column of ones [n, s, i + 1]: the bias as one more input."""
    return torch.cat([a, a.new_ones(*a.shape[:-1], 1)], dim=-1)


def _make_kfac(sums: Sequence[Tensor], samples: int) -> KfacNormalizer:
    output, activation, positions = sums
    output, activation = (total.cpu() / positions.cpu().clamp_min(1) for total in (output, activation))
    roots = (inverse_root(moment, KFAC_DAMPING).to(moment.dtype) for moment in (output, activation))
    return KfacNormalizer(*roots)


Moments = Callable[[Tensor, Tensor], Sequence[Tensor]]
Make = Callable[[Sequence[Tensor], int], Normalizer]

KINDS: Final[dict[str, tuple[Moments, Make]]] = {
    "adafactor": (
        adafactor_moments,
        lambda sums, samples: AdafactorNormalizer(*(total.cpu() / samples for total in sums)),
    ),
    "adam": (adam_moments, lambda sums, samples: AdamNormalizer(sums[0].cpu() / samples)),
    "kfac": (kfac_moments, _make_kfac),
}
"""Kind → (sums over a batch from a and g, the normalizer from the sums over so many samples)."""
