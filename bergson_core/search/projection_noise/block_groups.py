"""Which numbers of a row are the block of a projected gradient, and how much of its noise each side adds.

Legend: o output features, i input features; p, the size of the projection; a × b, the shape of a block; m modules, g of
which have blocks of the same shape; d numbers per module.

A side of d features that is projected to n lines has noise, since the lines are a sample of all directions. Lines that
are drawn independently are a sample of infinitely many. Orthogonal lines are a sample of d, drawn without putting any
back, so that the variance is smaller by the factor 1 - n/d, and zero for a side that is kept whole.

Signs lose the sizes of the numbers as well, which no share of the directions gives back. Of numbers from a normal
distribution, the sign has a part in proportion to the number, which is 2/π of its square, and a rest. Only the variance
of the first part becomes smaller with the factor above.

Source: Cochran, "Sampling Techniques", 1977, section 2.6, for the factor 1 - n/d.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import torch
from jaxtyping import Float, Int
from torch import Tensor

from bergson_core.gradients.projection import block_shape
from bergson_core.schemas.build import GradientSpec
from bergson_core.storage.manifest import ModuleEntry

_LINEAR_SHARE_OF_SIGNS: Final = 2 / torch.pi


@dataclass(frozen=True)
class BlockGroup:
    """The modules whose blocks have the same shape.

    Attributes:
        modules: Positions [g] of the modules in a row.
        shape: (a, b), lines of the left and of the right projection.
        left_factors: For each module [g] what the variance of its left side is multiplied with; 0 for no noise.
        right_factors: The same for its right side.
    """

    modules: Int[Tensor, " g"]
    shape: tuple[int, int]
    left_factors: Float[Tensor, " g"]
    right_factors: Float[Tensor, " g"]

    def take(self, blocks: Float[Tensor, "*n m d"]) -> Float[Tensor, "*n g a b"]:
        """Returns the blocks of these modules, of those of all modules, in their shape."""
        a, b = self.shape
        return blocks[..., self.modules, : a * b].unflatten(-1, (a, b))


def block_groups(modules: Sequence[ModuleEntry], gradients: GradientSpec) -> list[BlockGroup] | None:
    """Returns the modules of an index by the shapes of their blocks.

    Args:
        modules: The modules, in the order in which a row has them.
        gradients: How gradients became rows.

    Returns:
        The groups; None where the noise cannot be told from a row. That is so if a side with noise has a single line,
        which shows no spread, or if the shape of a block is unknown: the manifest does not say which modules have a
        bias, which counts where it is tracked and decides how a side is cut that is about as short as p.
    """
    by_shape: dict[tuple[int, int], list[tuple[int, float, float]]] = {}
    for number, module in enumerate(modules):
        if _has_unknown_shape(module, gradients):
            return None
        sides = module.out_features, module.in_features
        shape = block_shape(gradients.projection, gradients.projection_dim, *sides)
        left, right = (
            _variance_factor(gradients, lines, features) for lines, features in zip(shape, sides, strict=True)
        )
        if (shape[0] == 1 and left) or (shape[1] == 1 and right):
            return None
        by_shape.setdefault(shape, []).append((number, left, right))
    return [_make_group(shape, members) for shape, members in by_shape.items()]


def _has_unknown_shape(module: ModuleEntry, gradients: GradientSpec) -> bool:
    is_short = min(module.out_features, module.in_features) <= gradients.projection_dim
    return gradients.include_bias and gradients.projection == "orthogonal" and is_short


def _variance_factor(gradients: GradientSpec, lines: int, features: int) -> float:
    """Returns what the variance of a side is multiplied with."""
    if gradients.projection != "orthogonal":
        return 1.0
    kept = min(1.0, lines / max(1, features))
    if gradients.rows == "sign" and lines > 1:
        kept *= _LINEAR_SHARE_OF_SIGNS
    return 1 - kept


def _make_group(shape: tuple[int, int], members: Sequence[tuple[int, float, float]]) -> BlockGroup:
    numbers, left, right = zip(*members, strict=True)
    return BlockGroup(torch.tensor(numbers), shape, torch.tensor(left), torch.tensor(right))
