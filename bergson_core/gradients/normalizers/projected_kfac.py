"""K-FAC's normalizer as an index keeps it: multiplied with the projections already.

Legend: o output features, i input features; L [a, o] and R [b, i] projections.

A row needs of K-FAC's roots no more than L S^-½ [a, o] and R A^-½ [b, i], which are far smaller than the roots [o, o]
and [i, i]. They are kept in float32: whitening subtracts what is common to all vectors, a large number from another,
so that float16 would change rows of real models by up to 3 %.
"""

from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from bergson_core.errors import InvalidInput
from bergson_core.gradients.normalizers.normalizers import FactoredNormalizer


@final
@dataclass(frozen=True)
class ProjectedKfacNormalizer(FactoredNormalizer):
    """Computes L S^-½ G A^-½ Rᵀ, for the projections L and R that it was made with, and nothing else.

    Attributes:
        output_product: L S^-½ [a, o].
        output_start: The first column [a] of L, which tells whether a projection is the same.
        activation_product: R A^-½ [b, i]; for an embedding, whose inputs are one-hot, the diagonal [i] of A^-½.
        activation_start: The first column [b] of R.
    """

    output_product: Tensor
    output_start: Tensor
    activation_product: Tensor
    activation_start: Tensor

    def apply(self, gradients: Tensor) -> Tensor:
        """Raises `InvalidInput`: a gradient that is not projected needs the whole roots."""
        raise _needs_whole_roots()

    def sides(self) -> tuple[Tensor, Tensor]:
        """Raises `InvalidInput`, as `apply` does."""
        raise _needs_whole_roots()

    def fold(self, left: Tensor, right: Tensor) -> tuple[Tensor, Tensor]:
        """Returns (L S^-½, R A^-½). Raises `InvalidInput` for other projections than those it was made with."""
        output, activation = self.output_product.to(left), self.activation_product.to(right)
        if activation.dim() == 1:
            activation = right * activation
        starts = (left, self.output_start, output), (right, self.activation_start, activation)
        for projection, start, product in starts:
            is_same = projection.shape == product.shape and torch.allclose(
                projection[:, 0].to(start), start, rtol=1e-5, atol=1e-7
            )
            if not is_same:
                raise InvalidInput(
                    "a normalizer that an index keeps was multiplied with the index's projections already: expected "
                    "the projection_dim, projection and seed that it was fitted with"
                )
        return output, activation

    def tensors(self) -> dict[str, Tensor]:
        return {name: getattr(self, name) for name in self.__annotations__}


def _needs_whole_roots() -> InvalidInput:
    return InvalidInput(
        "an index keeps of K-FAC's roots only their products with its projections, and whole gradients need the roots "
        "themselves: expected a normalizer of fit_processor"
    )
