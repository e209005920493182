"""Per-sample gradients of linear layers, projected while they flow through the backward pass.

Legend: n samples, s positions, o output features, i input features, p projected.

G = Σ_s g_s a_sᵀ [o, i] is the gradient of one sample. What is stored is L G Rᵀ = Σ_s (L g_s)(R a_s)ᵀ [p, p]:
where the normalizer factorises over the two sides it is folded into L and R, and G is never formed. The activations of
an embedding are token ids [n, s], which stand for one-hot vectors.
"""

from collections.abc import Callable, Iterable
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Final, Self, cast, final

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from bergson_core.gradients.normalizers import FactoredNormalizer, Normalizer, append_bias_input
from bergson_core.gradients.processor import GradientProcessor
from bergson_core.gradients.projection import PROJECTIONS
from bergson_core.models.hooks import capture
from bergson_core.models.modules import TrackedModule, natural_sort_key, select_modules

Closure = Callable[[str, Tensor], None]
_WHOLE_GRADIENTS_AT_ONCE: Final = 2**22


class GradientCollector:
    """Context manager around forward and backward passes that collects each sample's gradients.

    Without `processor` they are raw and whole, [n, o, i] for each layer; with one they are normalized and
    projected, [n, p, p]. Without `closure`, `gradients` holds those of the last backward pass, by layer name in
    natural order; with one, `closure(name, gradient)` is called as each arrives and nothing is kept.
    `target_modules` is a regular expression or a list of layer names; by default all but embeddings and the output
    head, or the active adapters of a PEFT model. With `per_token`, gradients are [n, s, ...]: what each position of
    the input adds to the sample's gradient, through every layer; over s they sum to it. What is drawn and folded for
    each layer is shared with `like`, a collector of the same model and processor.

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
        modules: str | Iterable[str] | None = None,
        *,
        per_token: bool = False,
        share_with: "GradientCollector | None" = None,
    ) -> None:
        self.model = model
        self.per_token = per_token
        self.processor = processor or GradientProcessor()
        self.modules = select_modules(model, modules)
        self._closure = closure
        self._collected: dict[str, Tensor] = {}
        self._transforms: dict[
            tuple[str, torch.dtype, torch.device], FactoredTransform | WholeGradientTransform
        ] = {} if share_with is None else share_with._transforms
        self._open = ExitStack()

    @property
    def gradients(self) -> dict[str, Tensor]:
        """Layer name → [n, o, i] or [n, p, p], in natural order of the names."""
        return dict(sorted(self._collected.items(), key=lambda item: natural_sort_key(item[0])))

    def __enter__(self) -> Self:
        self._collected = {}
        opened = capture(self.model, self.modules, self._keep, self._arrive, by_position=self.per_token)
        self._open.enter_context(opened)
        return self

    def __exit__(self, *exception: object) -> None:
        self._open.close()

    def _keep(self, name: str, activations: Tensor) -> Tensor:
        is_float = activations.is_floating_point()
        like = activations if is_float else cast(Tensor, self.modules[name].module.weight)
        return self._transform(name, like).keep(activations)

    def _arrive(self, name: str, kept: Tensor, output_gradients: Tensor) -> None:
        transform, (n, s) = self._transform(name, output_gradients), output_gradients.shape[:2]
        if self.per_token:  # each position is a sample of its own
            kept, output_gradients = (one.flatten(0, 1)[:, None] for one in (kept, output_gradients))
        gradient = transform.gradient(kept, output_gradients)
        if self.per_token:
            gradient = gradient.unflatten(0, (n, s))
        if self._closure is not None:
            self._closure(name, gradient)
        elif name in self._collected:  # a layer used twice: the gradient is the sum
            self._collected[name] = self._collected[name] + gradient
        else:
            self._collected[name] = gradient

    def _transform(self, name: str, like: Tensor) -> "FactoredTransform | WholeGradientTransform":
        key = (name, like.dtype, like.device)
        if key not in self._transforms:
            self._transforms[key] = make_transform(self.processor, self.modules[name], like)
        return self._transforms[key]


@final
@dataclass(frozen=True)
class FactoredTransform:
    """L G Rᵀ [n, p, p] from the two sides. `left` [p, o], `right` [p, i], `offset` [p] the bias column of R."""

    left: Tensor
    right: Tensor
    offset: Tensor | None

    def keep(self, a: Float[Tensor, "n s i"] | Int[Tensor, "n s"]) -> Float[Tensor, "n s p"]:
        """R a [n, s, p]: all that has to outlive the forward pass."""
        if not a.is_floating_point():
            return F.embedding(a, self.right.mT)
        return F.linear(a, self.right, self.offset)

    def gradient(self, kept: Float[Tensor, "n s p"], g: Float[Tensor, "n s o"]) -> Float[Tensor, "n p p"]:
        return upcast(F.linear(g, self.left)).mT @ upcast(kept)


@final
@dataclass(frozen=True)
class WholeGradientTransform:
    """G [n, o, i] itself, a few samples at a time: normalized, then projected where there is a projection."""

    normalizer: Normalizer | None
    left: Tensor | None
    right: Tensor | None
    in_features: int
    bias: bool

    def keep(self, a: Tensor) -> Tensor:
        return append_bias_input(a) if self.bias else a

    def gradient(
        self, kept: Float[Tensor, "n s i"] | Int[Tensor, "n s"], g: Float[Tensor, "n s o"]
    ) -> Float[Tensor, "n _ _"]:
        at_once = max(1, _WHOLE_GRADIENTS_AT_ONCE // (g.shape[-1] * self.in_features))
        parts = zip(upcast(g).split(at_once), kept.split(at_once), strict=True)
        return torch.cat([self._finish(self._whole(a_part, g_part)) for g_part, a_part in parts])

    def _whole(self, a: Tensor, g: Tensor) -> Float[Tensor, "n o i"]:
        if a.is_floating_point():
            return g.mT @ upcast(a)
        by_token = g.new_zeros(len(g), self.in_features, g.shape[-1])
        return by_token.scatter_add_(1, a[..., None].expand_as(g), g).mT

    def _finish(self, gradient: Tensor) -> Tensor:
        if self.normalizer is not None:
            gradient = self.normalizer.apply(gradient)
        if self.left is not None and self.right is not None:
            gradient = self.left @ gradient @ self.right.mT
        return gradient


def make_transform(
    processor: GradientProcessor, layer: TrackedModule, like: Tensor
) -> FactoredTransform | WholeGradientTransform:
    """How `processor` turns the activations and output gradients of `layer` into rows, for tensors like `like`."""
    normalizer = processor.normalizers.get(layer.name)
    bias = processor.include_bias and layer.has_bias
    if processor.projection_dim is None:
        return WholeGradientTransform(normalizer, None, None, layer.in_features, bias)
    draw = partial(PROJECTIONS[processor.projection], processor.seed, layer.name)
    left = draw("left", processor.projection_dim, layer.out_features)
    right = draw("right", processor.projection_dim, layer.in_features + bias)
    if isinstance(normalizer, FactoredNormalizer):
        left, right = normalizer.fold(left, right)
    elif normalizer is not None:
        wide = upcast(like.new_empty(0))
        return WholeGradientTransform(normalizer, left.to(wide), right.to(wide), layer.in_features, bias)
    left, right = left.to(like), right.to(like)
    if bias:
        return FactoredTransform(left, right[:, :-1].contiguous(), right[:, -1].contiguous())
    return FactoredTransform(left, right, None)


def upcast(tensor: Tensor) -> Tensor:
    """float32, or float64 as it was."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))
