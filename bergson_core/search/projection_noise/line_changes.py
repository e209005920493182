"""What a score becomes without one line of one projection, and the variance of scores that follows from it.

    block = L G Rᵀ, of which a line is a row, from one line of L, or a column, from one line of R

The lines of a projection are drawn alike, so that a score, which is computed from all of them, is known to vary by as
much as leaving out single lines changes it: this is the jackknife. What is left of a block counts for all of it, and
lengths change with products, so that the variance is that of the score itself, cosines included. Each number of a block
has the noise of both of its lines, which rows and columns count twice. So the variance of what the two have in common,
the interaction in a two-way analysis of variance, is subtracted once. It is computed from the score's first derivative,
since no number of a block can be left out by itself.

Modules have projections of their own, so that their variances add up.

Legend: k stored rows, m modules whose blocks have the same shape, a × b; n lines of a side. x is φ of the rows and y is
φ of the query, with the lengths that `features.compute_features` gives them: one for each block, for each checkpoint,
or for the whole row.

Source: Efron and Stein, "The jackknife estimate of variance", 1981; Cochran, "Sampling Techniques", 1977, section 12,
for the two-way analysis.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import torch
from jaxtyping import Float
from torch import Tensor

from bergson_core.search.features import reciprocal_or_zero
from bergson_core.search.projection_noise.block_groups import BlockGroup

_SMALLEST_SQUARE: Final = 1e-6
"""Smallest square of a length that is divided by, relative to the square of the whole."""


@dataclass(frozen=True)
class SharedLengths:
    """What each module shares with those modules whose length it is divided by: all of a checkpoint, or none other.

    Attributes:
        scores: The part of these modules in the scores.
        of_rows: The square of their length in x; None where x was not divided by it, or where it does not depend on the
            projections, as that of sign rows does not.
        of_query: The same of y. A sum of φ has no single length.
    """

    scores: Float[Tensor, "k m"]
    of_rows: Float[Tensor, "k m"] | None
    of_query: Float[Tensor, "1 m"] | None


@dataclass(frozen=True)
class LineChanges:
    """How the scores of rows with one query depend on the lines of the projections.

    The changes of a sum of scores are the sums of the changes, since all rows share the projections.

    Attributes:
        left: Change of the score without each line of L.
        right: Change of the score without each line of R.
        numbers: What each number of a block adds to the score, to first order.
    """

    left: Float[Tensor, "k m a"]
    right: Float[Tensor, "k m b"]
    numbers: Float[Tensor, "k m a b"]

    def total(self) -> "LineChanges":
        """Returns the changes of the sum of all k scores, with k = 1."""
        parts = (self.left, self.right, self.numbers)
        return LineChanges(*(part.sum(0, keepdim=True) for part in parts))

    def __add__(self, other: "LineChanges") -> "LineChanges":
        return LineChanges(self.left + other.left, self.right + other.right, self.numbers + other.numbers)

    def variances(self, group: BlockGroup) -> tuple[Float[Tensor, " k"], Float[Tensor, " k"]]:
        """Returns the variance that these modules add to each score, and how uncertain this variance is.

        Args:
            group: The modules.

        Returns:
            (variance [k], uncertainty [k]). The uncertainty is the sum of squared variances of single sides, each
            divided by its degrees of freedom, which is what Satterthwaite's formula divides by.
        """
        left = _jackknife_variance(self.left) * group.left_factors
        right = _jackknife_variance(self.right) * group.right_factors
        both = self._interaction() * group.left_factors * group.right_factors
        variance = torch.maximum(left + right - both, torch.maximum(left, right))
        a, b = group.shape
        uncertainty = left**2 / max(1, a - 1) + right**2 / max(1, b - 1)
        return variance.sum(1), uncertainty.sum(1)

    def _interaction(self) -> Float[Tensor, "k m"]:
        """Returns the variance of what a row and a column of a block have in common."""
        a, b = self.numbers.shape[2:]
        rows, columns = self.numbers.mean(3, keepdim=True), self.numbers.mean(2, keepdim=True)
        rest = self.numbers - rows - columns + rows.mean(2, keepdim=True)
        return a * b * rest.square().sum((2, 3)) / max(1, (a - 1) * (b - 1))


def line_changes(
    x: Float[Tensor, "k m a b"], y: Float[Tensor, "m a b"], shared: SharedLengths
) -> LineChanges:
    """Returns how scores depend on the lines of the projections of these modules.

    Args:
        x: φ of the rows.
        y: φ of the query.
        shared: What these modules share with others.
    """
    products, scores = x * y, shared.scores[..., None]
    squares = [
        (numbers.square(), reciprocal_or_zero(length)[..., None])
        for numbers, length in ((x, shared.of_rows), (y[None], shared.of_query))
        if length is not None
    ]
    left, right = (
        _score_changes(
            _leave_out(products, dim),
            [_leave_out(part, dim) * reciprocal for part, reciprocal in squares],
            scores,
        )
        for dim in (3, 2)
    )
    halves = scores[..., None] / 2
    for part, reciprocal in squares:
        # to first order, xy - (x² + y²) score / 2 for a cosine
        products = products - part * reciprocal[..., None] * halves
    return LineChanges(left, right, products)


def _leave_out(numbers: Float[Tensor, "k m a b"], dim: int) -> Float[Tensor, "k m n"]:
    """Returns how sums over a block change without each of its lines.

    Without a line, the others stand for it too: each counts n / (n - 1) times.

    Args:
        numbers: What is summed.
        dim: The dimension along which a line lies.
    """
    lines = numbers.sum(dim)
    n = lines.shape[2]
    return (lines.sum(2, keepdim=True) - n * lines) / max(1, n - 1)


def _score_changes(
    changes: Float[Tensor, "k m n"],
    relative: Sequence[Float[Tensor, "_ m n"]],
    scores: Float[Tensor, "k m 1"],
) -> Float[Tensor, "k m n"]:
    """Returns how scores change without each line.

    Args:
        changes: How the product of x and y changes.
        relative: How the square of each length that counts changes, relative to it.
        scores: The part of the scores that is divided by these lengths.
    """
    after = scores + changes
    for change in relative:
        after = after * (1 + change).clamp_min(_SMALLEST_SQUARE).rsqrt()
    return after - scores


def _jackknife_variance(changes: Float[Tensor, "k m n"]) -> Float[Tensor, "k m"]:
    """Returns (n - 1) / n times the sum of the squares of the changes about their mean."""
    n = changes.shape[2]
    deviations = changes - changes.mean(2, keepdim=True)
    return (n - 1) / n * deviations.square().sum(2)
