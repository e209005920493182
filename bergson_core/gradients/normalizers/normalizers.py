"""Normalizers: what a gradient is divided by before it is projected, the root of a second moment.

Legend: n samples, o output features, i input features, p projected; G [o, i] the gradient of one sample, L [p, o] and
R [p, i] projections.

A normalizer that factorises over the two sides is folded into the projections L and R, so that L G Rᵀ is normalized and
G is never formed. moments.py has the sums that normalizers are fitted from.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Final, final

import torch
from jaxtyping import Float
from torch import Tensor

DAMPING: Final = 1e-4
"""Added to a second moment, in units of its mean: a unit that was silent in the sample is not blown up."""


class Normalizer(ABC):
    """Divides the gradient of one module by the root of a second moment."""

    @abstractmethod
    def apply(self, gradients: Float[Tensor, "n o i"]) -> Float[Tensor, "n o i"]:
        """Returns the normalized gradients."""

    @abstractmethod
    def tensors(self) -> dict[str, Tensor]:
        """Returns the tensors to save, by name. `normalizer_from_tensors` is the inverse."""


class FactoredNormalizer(Normalizer):
    """A normalizer that factorises over the output side and the input side of a module."""

    @abstractmethod
    def fold(
        self, left: Float[Tensor, "p o"], right: Float[Tensor, "p i"]
    ) -> tuple[Float[Tensor, "p o"], Float[Tensor, "p i"]]:
        """Returns (L', R') such that L' G R'ᵀ is L normalized(G) Rᵀ."""

    @abstractmethod
    def sides(self) -> tuple[Tensor, Tensor]:
        """Returns symmetric (M_o [o, o], M_i [i, i]), or diagonals [o] and [i], where normalized(G) is M_o G M_i."""


@final
@dataclass(frozen=True)
class AdafactorNormalizer(FactoredNormalizer):
    """Divides by √V̂ with V̂ = r cᵀ / mean(r), Adafactor's factored second moment.

    Attributes:
        row: r [o], the mean over the input side of the mean squared per-sample gradient.
        column: c [i], the same mean over the output side.

    Source: Shazeer and Stern, arXiv 1804.04235, algorithm 2.
    """

    row: Tensor
    column: Tensor

    def apply(self, gradients: Tensor) -> Tensor:
        row, column = (scale.to(gradients) for scale in self.sides())
        return gradients * row[:, None] * column

    def fold(self, left: Tensor, right: Tensor) -> tuple[Tensor, Tensor]:
        row, column = self.sides()
        return left * row, right * column

    def tensors(self) -> dict[str, Tensor]:
        return {"row": self.row, "column": self.column}

    def sides(self) -> tuple[Tensor, Tensor]:
        """Returns the diagonals (√mean(r) r^-½ [o], c^-½ [i])."""
        row, column = _damped(self.row), _damped(self.column)
        return (row.mean() / row).sqrt(), column.rsqrt()


@final
@dataclass(frozen=True)
class KfacNormalizer(FactoredNormalizer):
    """Computes S^-½ G A^-½, the root of K-FAC's approximation of the Fisher information.

    S = E[g gᵀ] and A = E[a aᵀ] are means over the positions that the loss depends on, of output gradients g and
    activations a; both are damped by `moments.KFAC_DAMPING`.

    Attributes:
        output_root: S^-½ [o, o].
        activation_root: A^-½ [i, i], or its diagonal [i] for an embedding, whose inputs are one-hot.

    Source: Martens and Grosse, arXiv 1503.05671, section 3.
    """

    output_root: Tensor
    activation_root: Tensor

    def apply(self, gradients: Tensor) -> Tensor:
        return self._multiply_right(self.output_root.to(gradients) @ gradients)

    def fold(self, left: Tensor, right: Tensor) -> tuple[Tensor, Tensor]:
        return left @ self.output_root.to(left), self._multiply_right(right)

    def sides(self) -> tuple[Tensor, Tensor]:
        return self.output_root, self.activation_root

    def _multiply_right(self, matrix: Tensor) -> Tensor:
        root = self.activation_root.to(matrix)
        return matrix * root if root.dim() == 1 else matrix @ root

    def tensors(self) -> dict[str, Tensor]:
        return {"output_root": self.output_root, "activation_root": self.activation_root}


@final
@dataclass(frozen=True)
class AdamNormalizer(Normalizer):
    """Divides by √V, the root of Adam's second moment.

    Attributes:
        second_moment: V [o, i], the mean squared per-sample gradient.

    Source: Kingma and Ba, arXiv 1412.6980.
    """

    second_moment: Tensor

    def apply(self, gradients: Tensor) -> Tensor:
        return gradients * _damped(self.second_moment).rsqrt().to(gradients)

    def tensors(self) -> dict[str, Tensor]:
        return {"second_moment": self.second_moment}


def _damped(moment: Tensor) -> Tensor:
    """Returns a moment that is positive wherever any entry is; all ones for a module whose gradients were all zero."""
    mean = moment.mean()
    return moment + DAMPING * mean if mean > 0 else torch.ones_like(moment)
