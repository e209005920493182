"""How the activations and output gradients of a module become its per-sample gradients, whole or projected.

Legend: n samples, s positions, i input features, o output features; x activations [n, s, i], g output gradients
[n, s, o], L [a, o] and R [b, i] projections, where a b ≤ p².

G = Σ_s g_s x_sᵀ [o, i] is the gradient of one sample. A row of an index has L G Rᵀ = Σ_s (L g_s)(R x_s)ᵀ [a, b] of it,
as p × p numbers: where a b < p², zeros follow.
Where a normalizer factorises over the two sides, it is folded into L and R, so that G is never formed
(`FactoredTransform`). Otherwise G is formed for a few samples at a time (`FullGradientTransform`). The activations of
an embedding are token ids [n, s], which stand for one-hot vectors.
"""

from dataclasses import dataclass
from functools import partial
from typing import Final, final

import torch
from jaxtyping import Float, Float64, Int
from torch import Tensor
from torch.nn import functional as F

from bergson_core.gradients.normalizers.normalizers import FactoredNormalizer, Normalizer
from bergson_core.gradients.processor import GradientProcessor
from bergson_core.gradients.projection import PROJECTIONS, block_shape
from bergson_core.models.modules import TrackedModule

_MAX_WHOLE_GRADIENT_NUMBERS: Final = 2**22
"""Numbers of the full gradients that are in memory at a time: 16 MiB in float32."""


@final
@dataclass(frozen=True)
class FactoredTransform:
    """Computes L G Rᵀ from its two sides, without forming G.

    Attributes:
        projection_dim: p.
        left: L [a, o], with the normalizer's left side folded in.
        right: R [b, i], with the normalizer's right side folded in.
        offset: The column [b] of R that belongs to the bias; None where the bias is not tracked.
    """

    projection_dim: int
    left: Tensor
    right: Tensor
    offset: Tensor | None

    def prepare_input(self, x: Float[Tensor, "n s i"] | Int[Tensor, "n s"]) -> Float[Tensor, "n s b"]:
        """Returns R x [n, s, b], which is all that has to outlive the forward pass."""
        if not x.is_floating_point():
            return F.embedding(x, self.right.mT)
        return F.linear(x, self.right, self.offset)

    def gradient(self, prepared: Float[Tensor, "n s b"], g: Float[Tensor, "n s o"]) -> Float[Tensor, "n p p"]:
        """Returns L G Rᵀ of each sample as p × p numbers, from what `prepare_input` returned."""
        return _fill_square(upcast(F.linear(g, self.left)).mT @ upcast(prepared), self.projection_dim)


@final
@dataclass(frozen=True)
class FullGradientTransform:
    """Forms G for a few samples at a time, normalizes it, and projects it where there are projections.

    Attributes:
        normalizer: What G is divided by; None leaves it as it is.
        projection_dim: p; None keeps gradients whole.
        left: L [a, o]; None keeps gradients whole.
        right: R [b, i]; None keeps gradients whole.
        in_features: i, without the bias; of an embedding, the size of its vocabulary.
        bias: Whether the bias is tracked, as one more input feature.
    """

    normalizer: Normalizer | None
    projection_dim: int | None
    left: Tensor | None
    right: Tensor | None
    in_features: int
    bias: bool

    def prepare_input(self, x: Tensor) -> Tensor:
        """Returns the activations [n, s, i] or token ids [n, s] to be kept for the backward pass."""
        return append_bias_input(x) if self.bias else x

    def gradient(
        self, prepared: Float[Tensor, "n s i"] | Int[Tensor, "n s"], g: Float[Tensor, "n s o"]
    ) -> Float[Tensor, "n _ _"]:
        """Returns each sample's gradient, [n, o, i] or [n, p, p], from what `prepare_input` returned."""
        chunk_size = max(1, _MAX_WHOLE_GRADIENT_NUMBERS // max(1, g.shape[-1] * self.in_features))
        chunks = zip(prepared.split(chunk_size), upcast(g).split(chunk_size), strict=True)
        return torch.cat([self._finish(self._whole(x_chunk, g_chunk)) for x_chunk, g_chunk in chunks])

    def _whole(self, x: Tensor, g: Tensor) -> Float[Tensor, "n o i"]:
        if x.is_floating_point():
            return g.mT @ upcast(x)
        by_token = g.new_zeros(len(g), self.in_features, g.shape[-1])
        return by_token.scatter_add_(1, x[..., None].expand_as(g), g).mT

    def _finish(self, gradient: Tensor) -> Tensor:
        if self.normalizer is not None:
            gradient = self.normalizer.apply(gradient)
        if self.left is None or self.right is None or self.projection_dim is None:
            return gradient
        return _fill_square(self.left @ gradient @ self.right.mT, self.projection_dim)


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
    p = processor.projection_dim
    if p is None:
        return FullGradientTransform(normalizer, None, None, None, tracked.in_features, bias)
    left, right = draw_projections(processor, tracked)
    if isinstance(normalizer, FactoredNormalizer):
        left, right = normalizer.fold(left, right)
    elif normalizer is not None:
        wide = upcast(like.new_empty(0))
        left, right = left.to(wide), right.to(wide)
        return FullGradientTransform(normalizer, p, left, right, tracked.in_features, bias)
    left, right = left.to(like), right.to(like)
    if bias:
        return FactoredTransform(p, left, right[:, :-1].contiguous(), right[:, -1].contiguous())
    return FactoredTransform(p, left, right, None)


def draw_projections(
    processor: GradientProcessor, tracked: TrackedModule
) -> tuple[Float64[Tensor, "a o"], Float64[Tensor, "b i"]]:
    """Returns the projections L and R of a module, for a processor that projects."""
    assert processor.projection_dim is not None
    sides = tracked.out_features, tracked.in_features + (processor.include_bias and tracked.has_bias)
    rows = block_shape(processor.projection, processor.projection_dim, *sides)
    draw = partial(PROJECTIONS[processor.projection], processor.seed, tracked.name)
    return draw("left", rows[0], sides[0]), draw("right", rows[1], sides[1])


def _fill_square(block: Float[Tensor, "n a b"], p: int) -> Float[Tensor, "n p p"]:
    """Returns the numbers of each block as p × p numbers, with zeros at the end where there are fewer."""
    if block.shape[1:] == (p, p):
        return block
    flat = block.flatten(1)
    return F.pad(flat, (0, p * p - flat.shape[1])).unflatten(1, (p, p))


def upcast(tensor: Tensor) -> Tensor:
    """Returns `tensor` in float32, or unchanged where it is float64."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def append_bias_input(x: Float[Tensor, "n s i"]) -> Float[Tensor, "n s i+1"]:
    """Returns activations with a column of ones appended [n, s, i + 1], which makes the bias one more input feature."""
    return torch.cat([x, x.new_ones(*x.shape[:-1], 1)], dim=-1)
