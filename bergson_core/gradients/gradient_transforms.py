"""How the activations and output gradients of a module become its per-sample gradients, whole or projected.

Legend: n samples, s positions, i input features, o output features, p projected; a activations [n, s, i], g output
gradients [n, s, o], L [p, o] and R [p, i] projections.

G = Σ_s g_s a_sᵀ [o, i] is the gradient of one sample. A row of an index has L G Rᵀ = Σ_s (L g_s)(R a_s)ᵀ [p, p] of it.
Where a normalizer factorises over the two sides, it is folded into L and R, so that G is never formed
(`FactoredTransform`). Otherwise G is formed for a few samples at a time (`FullGradientTransform`). The activations of
an embedding are token ids [n, s], which stand for one-hot vectors.
"""

from dataclasses import dataclass
from functools import partial
from typing import Final, final

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from bergson_core.gradients.normalizers.normalizers import FactoredNormalizer, Normalizer
from bergson_core.gradients.processor import GradientProcessor
from bergson_core.gradients.projection import PROJECTIONS
from bergson_core.models.modules import TrackedModule

_MAX_WHOLE_GRADIENT_NUMBERS: Final = 2**22
"""Numbers of the full gradients that are in memory at a time: 16 MiB in float32."""


@final
@dataclass(frozen=True)
class FactoredTransform:
    """Computes L G Rᵀ from its two sides, without forming G.

    Attributes:
        left: L [p, o], with the normalizer's left side folded in.
        right: R [p, i], with the normalizer's right side folded in.
        offset: The column [p] of R that belongs to the bias; None where the bias is not tracked.
    """

    left: Tensor
    right: Tensor
    offset: Tensor | None

    def prepare_input(self, a: Float[Tensor, "n s i"] | Int[Tensor, "n s"]) -> Float[Tensor, "n s p"]:
        """Returns R a [n, s, p], which is all that has to outlive the forward pass."""
        if not a.is_floating_point():
            return F.embedding(a, self.right.mT)
        return F.linear(a, self.right, self.offset)

    def gradient(self, prepared: Float[Tensor, "n s p"], g: Float[Tensor, "n s o"]) -> Float[Tensor, "n p p"]:
        """Returns L G Rᵀ [n, p, p] of each sample, from what `prepare_input` returned."""
        return upcast(F.linear(g, self.left)).mT @ upcast(prepared)


@final
@dataclass(frozen=True)
class FullGradientTransform:
    """Forms G for a few samples at a time, normalizes it, and projects it where there are projections.

    Attributes:
        normalizer: What G is divided by; None leaves it as it is.
        left: L [p, o]; None keeps gradients whole.
        right: R [p, i]; None keeps gradients whole.
        in_features: i, without the bias; of an embedding, the size of its vocabulary.
        bias: Whether the bias is tracked, as one more input feature.
    """

    normalizer: Normalizer | None
    left: Tensor | None
    right: Tensor | None
    in_features: int
    bias: bool

    def prepare_input(self, a: Tensor) -> Tensor:
        """Returns the activations [n, s, i] or token ids [n, s] to be kept for the backward pass."""
        return append_bias_input(a) if self.bias else a

    def gradient(
        self, prepared: Float[Tensor, "n s i"] | Int[Tensor, "n s"], g: Float[Tensor, "n s o"]
    ) -> Float[Tensor, "n _ _"]:
        """Returns each sample's gradient, [n, o, i] or [n, p, p], from what `prepare_input` returned."""
        chunk_size = max(1, _MAX_WHOLE_GRADIENT_NUMBERS // (g.shape[-1] * self.in_features))
        chunks = zip(prepared.split(chunk_size), upcast(g).split(chunk_size), strict=True)
        return torch.cat([self._finish(self._whole(a_chunk, g_chunk)) for a_chunk, g_chunk in chunks])

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
    processor: GradientProcessor, tracked: TrackedModule, like: Tensor
) -> FactoredTransform | FullGradientTransform:
    """Returns the transform by which `processor` turns the gradients of a module into its block of a row.

    Args:
        processor: The normalizers and the settings of the projection.
        tracked: The module.
        like: A tensor with the dtype and on the device of the activations that the transform is for.
    """
    normalizer = processor.normalizers.get(tracked.name)
    bias = processor.include_bias and tracked.has_bias
    if processor.projection_dim is None:
        return FullGradientTransform(normalizer, None, None, tracked.in_features, bias)
    draw = partial(PROJECTIONS[processor.projection], processor.seed, tracked.name)
    left = draw("left", processor.projection_dim, tracked.out_features)
    right = draw("right", processor.projection_dim, tracked.in_features + bias)
    if isinstance(normalizer, FactoredNormalizer):
        left, right = normalizer.fold(left, right)
    elif normalizer is not None:
        wide = upcast(like.new_empty(0))
        return FullGradientTransform(normalizer, left.to(wide), right.to(wide), tracked.in_features, bias)
    left, right = left.to(like), right.to(like)
    if bias:
        return FactoredTransform(left, right[:, :-1].contiguous(), right[:, -1].contiguous())
    return FactoredTransform(left, right, None)


def upcast(tensor: Tensor) -> Tensor:
    """Returns `tensor` in float32, or unchanged where it is float64."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def append_bias_input(a: Float[Tensor, "n s i"]) -> Float[Tensor, "n s i+1"]:
    """Returns activations with a column of ones appended [n, s, i + 1], which makes the bias one more input feature."""
    return torch.cat([a, a.new_ones(*a.shape[:-1], 1)], dim=-1)
