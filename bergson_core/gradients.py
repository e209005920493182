"""Per-sample gradients of linear layers, projected while they flow through the backward pass.

Legend: n samples, s positions, o output features, i input features, p projected.

G = Σ_s g_s a_sᵀ [o, i] is the gradient of one sample. What is stored is L G Rᵀ = Σ_s (L g_s)(R a_s)ᵀ [p, p]:
where the normalizer factorises over the two sides it is folded into L and R, and G is never formed.
"""

from collections.abc import Callable, Iterable
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Final, Self, final

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from bergson_core.hooks import capture
from bergson_core.layers import Layer, natural_key, select
from bergson_core.normalizers import FactoredNormalizer, Normalizer, with_bias
from bergson_core.processor import GradientProcessor
from bergson_core.projection import rademacher

Closure = Callable[[str, Tensor], None]
_WHOLE_GRADIENTS_AT_ONCE: Final = 2**24


class GradientCollector:
    """Context manager around forward and backward passes that collects each sample's gradients.

    Without `processor` they are raw and whole, [n, o, i] for each layer; with one they are normalized and
    projected, [n, p, p]. Without `closure`, `gradients` holds those of the last backward pass, by layer name in
    natural order; with one, `closure(name, gradient)` is called as each arrives and nothing is kept.
    `target_modules` is a regular expression or a list of layer names; by default all but the output head.

    The gradients are those of whatever is back-propagated: sum the loss over samples, and each row is the
    gradient of that sample's own loss. float32, or float64 where the model is.

    >>> with GradientCollector(model) as collector:
    ...     model(**batch).loss.backward()
    >>> collector.gradients["gpt_neox.layers.0.attention.dense"].shape
    """

    def __init__(
        self,
        model: nn.Module,
        processor: GradientProcessor | None = None,
        closure: Closure | None = None,
        target_modules: str | Iterable[str] | None = None,
    ) -> None:
        self.model = model
        self.processor = processor or GradientProcessor()
        self.layers = select(model, target_modules)
        self._closure = closure
        self._collected: dict[str, Tensor] = {}
        self._transforms: dict[tuple[str, torch.dtype, torch.device], Factored | Whole] = {}
        self._open = ExitStack()

    @property
    def gradients(self) -> dict[str, Tensor]:
        """Layer name → [n, o, i] or [n, p, p], in natural order of the names."""
        return dict(sorted(self._collected.items(), key=lambda item: natural_key(item[0])))

    def __enter__(self) -> Self:
        self._collected = {}
        self._open.enter_context(capture(self.model, self.layers, self._keep, self._arrive))
        return self

    def __exit__(self, *exception: object) -> None:
        self._open.close()

    def _keep(self, name: str, activations: Tensor) -> Tensor:
        return self._transform(name, activations).keep(activations)

    def _arrive(self, name: str, kept: Tensor, output_gradients: Tensor) -> None:
        gradient = self._transform(name, output_gradients).gradient(kept, output_gradients)
        if self._closure is not None:
            self._closure(name, gradient)
        elif name in self._collected:  # a layer used twice: the gradient is the sum
            self._collected[name] = self._collected[name] + gradient
        else:
            self._collected[name] = gradient

    def _transform(self, name: str, like: Tensor) -> "Factored | Whole":
        key = (name, like.dtype, like.device)
        if key not in self._transforms:
            self._transforms[key] = make_transform(self.processor, self.layers[name], like)
        return self._transforms[key]


@final
@dataclass(frozen=True)
class Factored:
    """L G Rᵀ [n, p, p] from the two sides. `left` [p, o], `right` [p, i], `offset` [p] the bias column of R."""

    left: Tensor
    right: Tensor
    offset: Tensor | None

    def keep(self, a: Float[Tensor, "n s i"]) -> Float[Tensor, "n s p"]:
        """R a [n, s, p]: all that has to outlive the forward pass."""
        return F.linear(a, self.right, self.offset)

    def gradient(self, kept: Float[Tensor, "n s p"], g: Float[Tensor, "n s o"]) -> Float[Tensor, "n p p"]:
        return widened(F.linear(g, self.left)).mT @ widened(kept)


@final
@dataclass(frozen=True)
class Whole:
    """G [n, o, i] itself, a few samples at a time: normalized, then projected where there is a projection."""

    normalizer: Normalizer | None
    left: Tensor | None
    right: Tensor | None
    bias: bool

    def keep(self, a: Tensor) -> Tensor:
        return with_bias(a) if self.bias else a

    def gradient(self, kept: Float[Tensor, "n s i"], g: Float[Tensor, "n s o"]) -> Float[Tensor, "n _ _"]:
        at_once = max(1, _WHOLE_GRADIENTS_AT_ONCE // (g.shape[-1] * kept.shape[-1]))
        parts = zip(widened(g).split(at_once), widened(kept).split(at_once), strict=True)
        return torch.cat([self._finish(g_part.mT @ a_part) for g_part, a_part in parts])

    def _finish(self, gradient: Tensor) -> Tensor:
        if self.normalizer is not None:
            gradient = self.normalizer.apply(gradient)
        if self.left is not None and self.right is not None:
            gradient = self.left @ gradient @ self.right.mT
        return gradient


def make_transform(processor: GradientProcessor, layer: Layer, like: Tensor) -> Factored | Whole:
    """How `processor` turns the activations and output gradients of `layer` into rows, for tensors like `like`."""
    normalizer = processor.normalizers.get(layer.name)
    bias = processor.include_bias and layer.has_bias
    if processor.projection_dim is None:
        return Whole(normalizer, None, None, bias)
    left = rademacher(processor.seed, layer.name, "left", processor.projection_dim, layer.out_features)
    right = rademacher(
        processor.seed, layer.name, "right", processor.projection_dim, layer.in_features + bias
    )
    if isinstance(normalizer, FactoredNormalizer):
        left, right = normalizer.fold(left, right)
    elif normalizer is not None:
        wide = widened(like.new_empty(0))
        return Whole(normalizer, left.to(wide), right.to(wide), bias)
    left, right = left.to(like), right.to(like)
    if bias:
        return Factored(left, right[:, :-1].contiguous(), right[:, -1].contiguous())
    return Factored(left, right, None)


def widened(tensor: Tensor) -> Tensor:
    """float32, or float64 as it was."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))
