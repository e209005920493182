"""The products and the length of the whole gradients of one module, of which a score consists.

A gradient is G = Σ_s g_s a_sᵀ [o, i]. With W = N(Q) of the query's normalized gradient Q, its product with Q is
Σ_s g_sᵀ W a_s. Where the normalizer factorises into N(G) = M_o G M_i, its length comes from the Gram matrices of the
positions,

    ‖N(G)‖² = Σ_st (g'_s · g'_t) (a'_s · a'_t)        with g' = M_o g and a' = M_i a,

and G is not formed, except in modules so small that forming it is less work. Adam's normalizer does not factorise:
there G is formed, for a few samples at a time.

Legend: n samples, s and t positions, i input features with the bias, o output features. The activations of an embedding
are token ids, which stand for one-hot vectors.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from bergson_core.gradients.gradient_transforms import FullGradientTransform, append_bias_input, upcast
from bergson_core.gradients.normalizers.normalizers import FactoredNormalizer, Normalizer
from bergson_core.gradients.processor import GradientProcessor
from bergson_core.models.modules import TrackedModule

_GRAM_CHUNK_POSITIONS: Final = 512
"""Rows of the s × s Gram matrices that are formed at a time."""
_MAX_WHOLE_GRADIENT_NUMBERS: Final = 2**22
"""Numbers of the full gradients that are in memory at a time: 16 MiB in float32."""

Gram = Callable[[Tensor, Tensor], Tensor]
"""(activations [n, t, i] of some positions, activations [n, s, i]) → their inner products [n, t, s]."""


@dataclass(frozen=True)
class ModuleScorer:
    """Scores the gradients of one module.

    Attributes:
        weights: W = N(Q) [o, i].
        normalizer: N, or None for the identity.
        sides: M_o [o, o] and M_i [i, i], or their diagonals; None where N does not factorise.
        in_features: i, without the bias.
        bias: Whether the bias is tracked, as one more input feature.
    """

    weights: Tensor
    normalizer: Normalizer | None
    sides: tuple[Tensor, Tensor] | None
    in_features: int
    bias: bool

    @classmethod
    def make(
        cls, query_gradient: Float[Tensor, "o i"], processor: GradientProcessor, tracked: TrackedModule
    ) -> "ModuleScorer":
        """Returns the scorer for a query's normalized gradient Q."""
        normalizer, sides, weights = processor.normalizers.get(tracked.name), None, query_gradient
        if normalizer is None:
            sides = weights.new_ones(1), weights.new_ones(1)
        elif isinstance(normalizer, FactoredNormalizer):
            output_side, input_side = normalizer.sides()
            sides = output_side.to(weights), input_side.to(weights)
        if normalizer is not None:
            weights = normalizer.apply(weights)
        bias = processor.include_bias and tracked.has_bias
        return cls(weights, normalizer, sides, tracked.in_features, bias)

    def products(
        self, a: Float[Tensor, "n s _"] | Int[Tensor, "n s"], g: Float[Tensor, "n s o"]
    ) -> Float[Tensor, "n s"]:
        """Returns g_sᵀ W a_s of each position."""
        if not a.is_floating_point():
            return (F.embedding(a, self.weights.mT) * g).sum(-1)
        return (F.linear(self._with_bias(a), self.weights) * g).sum(-1)

    def squared_lengths(
        self, a: Float[Tensor, "n s _"] | Int[Tensor, "n s"], g: Float[Tensor, "n s o"]
    ) -> Float[Tensor, " n"]:
        """Returns ‖N(G)‖² of each sample."""
        is_embedding = not a.is_floating_point()
        a = a if is_embedding else self._with_bias(a)
        o, i = self.weights.shape
        if self.sides is None:
            whole = FullGradientTransform(self.normalizer, None, None, None, self.in_features, self.bias)
            return _whole_squares(a, g, o * i, whole.gradient)
        output_side, input_side = self.sides
        g = _multiply(g, output_side)
        if is_embedding:
            scales = input_side.expand(i)[a]
            return _gram_squares(a[..., None], g * scales[..., None], _equal_tokens)
        a = _multiply(a, input_side)
        if a.shape[1] * (o + i) > o * i:
            return _whole_squares(a, g, o * i, lambda a_chunk, g_chunk: g_chunk.mT @ a_chunk)
        return _gram_squares(a, g, _inner_products)

    def _with_bias(self, a: Float[Tensor, "n s _"]) -> Float[Tensor, "n s i"]:
        return append_bias_input(upcast(a)) if self.bias else upcast(a)


def _multiply(features: Float[Tensor, "n s f"], side: Tensor) -> Float[Tensor, "n s f"]:
    """Returns features times a symmetric matrix [f, f], or times a diagonal [f]."""
    return features * side if side.dim() == 1 else features @ side


def _inner_products(a: Float[Tensor, "n t i"], b: Float[Tensor, "n s i"]) -> Float[Tensor, "n t s"]:
    return a @ b.mT


def _equal_tokens(a: Int[Tensor, "n t 1"], b: Int[Tensor, "n s 1"]) -> Tensor:
    """Returns the inner products [n, t, s] of the one-hot vectors that token ids stand for."""
    return a == b.mT


def _gram_squares(a: Tensor, g: Float[Tensor, "n s o"], inner_products: Gram) -> Float[Tensor, " n"]:
    """Returns ‖Σ_s g_s a_sᵀ‖² of each sample, from the Gram matrices of the positions."""
    squares = g.new_zeros(len(g))
    for start in range(0, g.shape[1], _GRAM_CHUNK_POSITIONS):
        chunk = slice(start, start + _GRAM_CHUNK_POSITIONS)
        squares += ((g[:, chunk] @ g.mT) * inner_products(a[:, chunk], a)).sum((1, 2))
    return squares


def _whole_squares(
    a: Tensor, g: Float[Tensor, "n s o"], size: int, form: Callable[[Tensor, Tensor], Tensor]
) -> Float[Tensor, " n"]:
    """Returns the squared lengths of the gradients that `form` returns, forming a few of them, of `size` numbers, at a
    time."""
    chunk_size = max(1, _MAX_WHOLE_GRADIENT_NUMBERS // size)
    chunks = zip(a.split(chunk_size), g.split(chunk_size), strict=True)
    return torch.cat([form(a_chunk, g_chunk).square().sum((1, 2)) for a_chunk, g_chunk in chunks])
