"""Second-moment normalizers: what a gradient is divided by, element by element, before it is projected.

Legend: n samples, s positions, o output features, i input features; a activations [n, s, i], g output
gradients [n, s, o], G = Σ_s g_s a_sᵀ [o, i] the gradient of one sample.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final, Literal, final

import torch
from jaxtyping import Float
from torch import Tensor

from bergson_core.batching import Batch
from bergson_core.errors import InvalidInput
from bergson_core.hooks import capture, frozen
from bergson_core.layers import Layer
from bergson_core.models import LanguageModel
from bergson_core.passes import forward_backward

DAMPING: Final = 1e-4
"""Added to a second moment, in units of its mean: a unit that was silent in the sample is not blown up."""
_GRAM_POSITIONS: Final = 512
"""Rows of the s × s Gram matrices formed at a time."""


class Normalizer(ABC):
    """Divides the gradient of one layer by the root of a second moment."""

    @abstractmethod
    def tensors(self) -> dict[str, Tensor]:
        """What to save."""


@final
@dataclass(frozen=True)
class AdafactorNormalizer(Normalizer):
    """V̂ = r cᵀ / mean(r) (Shazeer and Stern, arXiv 1804.04235, algorithm 2): factorises over the two sides.

    `row` [o] and `column` [i] are the means of the mean squared per-sample gradient over the other side.
    """

    row: Tensor
    column: Tensor

    def tensors(self) -> dict[str, Tensor]:
        return {"row": self.row, "column": self.column}

    def scales(self) -> tuple[Tensor, Tensor]:
        """(√mean(r) r^-½ [o], c^-½ [i]): G / √V̂ is diag of the first · G · diag of the second."""
        row, column = _damped(self.row), _damped(self.column)
        return (row.mean() / row).sqrt(), column.rsqrt()


@final
@dataclass(frozen=True)
class AdamNormalizer(Normalizer):
    """V [o, i], the mean squared per-sample gradient (Kingma and Ba, arXiv 1412.6980)."""

    second_moment: Tensor

    def tensors(self) -> dict[str, Tensor]:
        return {"second_moment": self.second_moment}

    def inverse_root(self) -> Tensor:
        """V^-½ [o, i]: G / √V is the elementwise product."""
        return _damped(self.second_moment).rsqrt()


def _damped(moment: Tensor) -> Tensor:
    """Positive wherever any entry is; all ones for a layer whose gradients were all zero."""
    mean = moment.mean()
    return moment + DAMPING * mean if mean > 0 else torch.ones_like(moment)


def from_tensors(tensors: dict[str, Tensor]) -> Normalizer:
    """The inverse of `Normalizer.tensors`."""
    if "second_moment" in tensors:
        return AdamNormalizer(tensors["second_moment"])
    return AdafactorNormalizer(tensors["row"], tensors["column"])


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


def adam_moments(a: Float[Tensor, "n s i"], g: Float[Tensor, "n s o"]) -> Float[Tensor, "o i"]:
    """Σ_n G² [o, i], one sample's gradient at a time."""
    total = g.new_zeros(g.shape[-1], a.shape[-1])
    for a_n, g_n in zip(a, g, strict=True):
        total += (g_n.mT @ a_n).square_()
    return total


def with_bias(a: Float[Tensor, "n s i"]) -> Float[Tensor, "n s i+1"]:
    """Activations [n, s, i] with a column of ones [n, s, i + 1]: the bias as one more input."""
    return torch.cat([a, a.new_ones(*a.shape[:-1], 1)], dim=-1)


def fit_normalizers(
    model: LanguageModel,
    layers: dict[str, Layer],
    batches: Iterable[Batch],
    kind: Literal["none", "adafactor", "adam"] = "adafactor",
    *,
    include_bias: bool = False,
) -> dict[str, Normalizer]:
    """A normalizer for each layer, fitted in one streaming pass over `batches`; none for kind `none`.

    Raises `InvalidInput` where there is no sample to fit from.
    """
    if kind == "none":
        return {}
    sums: dict[str, list[Tensor]] = {}

    def arrive(name: str, a: Tensor, g: Tensor) -> None:
        bias = include_bias and getattr(layers[name].module, "bias", None) is not None
        a, g = (with_bias(a) if bias else a).to(_accumulator(a)), g.to(_accumulator(g))
        new = list(adafactor_moments(a, g)) if kind == "adafactor" else [adam_moments(a, g)]
        sums[name] = (
            [old.add_(add) for old, add in zip(sums[name], new, strict=True)] if name in sums else new
        )

    samples = 0
    for batch in batches:
        with frozen(model.model), capture(model.model, layers, lambda _, a: a, arrive):
            forward_backward(model, batch)
        samples += len(batch)
    if not samples:
        raise InvalidInput("expected at least one document to fit the normalizers from; got none")
    make = AdafactorNormalizer if kind == "adafactor" else AdamNormalizer
    return {name: make(*(total.div_(samples).cpu() for total in sums[name])) for name in layers}


def _accumulator(tensor: Tensor) -> torch.dtype:
    return torch.float64 if tensor.dtype == torch.float64 else torch.float32
