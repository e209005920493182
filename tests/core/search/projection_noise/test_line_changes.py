"""Leaving out a line changes a score as if the line had never been drawn, and variances follow from these changes."""

import itertools
from dataclasses import dataclass

import pytest
import torch

from bergson_core.search.projection_noise.block_groups import BlockGroup
from bergson_core.search.projection_noise.line_changes import LineChanges, SharedLengths, line_changes


@dataclass(frozen=True)
class Scaling:
    """Whether each block has a length of its own, and which lengths count."""

    by_block: bool
    of_rows: bool
    of_query: bool


SCALINGS = [
    Scaling(by_block, of_rows, of_query)
    for by_block, of_rows, of_query in itertools.product([False, True], repeat=3)
]
SHAPE = (3, 4, 5)
"""(m, a, b)."""


def make_blocks(scaling: Scaling, rows: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns raw blocks of rows and of a query, with the lengths that φ has where the scaling divides by them."""
    generator = torch.Generator().manual_seed(0)
    x, y = (torch.randn(n, *SHAPE, generator=generator, dtype=torch.float64) for n in (rows, 1))
    return (
        scale(x, scaling.of_rows, scaling.by_block),
        scale(y, scaling.of_query, scaling.by_block)[0],
    )


def scale(blocks: torch.Tensor, counts: bool, by_block: bool) -> torch.Tensor:
    if not counts:
        return blocks
    if by_block:
        return blocks / blocks.square().sum((2, 3), keepdim=True).mul(len(blocks[0])).sqrt()
    return blocks / blocks.square().sum((1, 2, 3), keepdim=True).sqrt()


def changes_of(x: torch.Tensor, y: torch.Tensor, scaling: Scaling) -> LineChanges:
    def shared(numbers: torch.Tensor) -> torch.Tensor:
        by_module = numbers.sum((2, 3))
        return by_module if scaling.by_block else by_module.sum(1, keepdim=True).expand_as(by_module)

    of_rows = shared(x * x) if scaling.of_rows else None
    of_query = shared((y * y)[None]) if scaling.of_query else None
    return line_changes(x, y, SharedLengths(shared(x * y), of_rows, of_query))


def score_without(x, y, module: int, line: tuple, scaling: Scaling) -> float:
    """Returns the score of one row if a line of a module was missing, by its definition."""
    x, y = x.clone(), y.clone()
    n = SHAPE[1] if line[1] == slice(None) else SHAPE[2]
    for part in (x, y):
        part[(module, *line)] = 0
        part[module] *= (n / (n - 1)) ** 0.5
    x, y = (
        scale(x[None], scaling.of_rows, scaling.by_block),
        scale(y[None], scaling.of_query, scaling.by_block),
    )
    return float((x * y).sum())


@pytest.mark.parametrize("scaling", SCALINGS, ids=str)
def test_a_change_is_that_of_a_score_which_is_computed_without_the_line(scaling):
    x, y = make_blocks(scaling, rows=2)
    scores = (x * y).sum((1, 2, 3))
    changes = changes_of(x, y, scaling)
    for row, module in itertools.product(range(2), range(SHAPE[0])):
        for side, size in (("left", SHAPE[1]), ("right", SHAPE[2])):
            for number in range(size):
                line = (number, slice(None)) if side == "left" else (slice(None), number)
                expected = score_without(x[row], y, module, line, scaling) - scores[row]
                assert getattr(changes, side)[row, module, number] == pytest.approx(
                    float(expected), abs=1e-12
                )


@pytest.mark.parametrize("scaling", SCALINGS, ids=str)
def test_a_number_adds_what_the_derivative_of_the_score_says(scaling):
    """The derivative with regard to how often the number counts."""
    x, y = make_blocks(scaling, rows=1)
    counts = torch.ones(SHAPE, dtype=torch.float64, requires_grad=True)
    scaled = (
        scale(x * counts.sqrt(), scaling.of_rows, scaling.by_block),
        scale((y * counts.sqrt())[None], scaling.of_query, scaling.by_block),
    )
    (expected,) = torch.autograd.grad((scaled[0] * scaled[1]).sum(), counts)
    numbers = changes_of(x, y, scaling).numbers
    torch.testing.assert_close(numbers[0], expected)


def test_the_variance_of_independent_lines_is_that_of_a_two_way_analysis():
    """Row effects, column effects and interactions of known variances, with as many blocks as make it certain."""
    generator = torch.Generator().manual_seed(0)
    a, b, blocks = 6, 9, 20_000
    shapes = ((blocks, a, 1), (blocks, 1, b), (blocks, a, b))
    rows, columns, both = (torch.randn(*shape, generator=generator, dtype=torch.float64) for shape in shapes)
    numbers = (2 * rows + columns + 3 * both)[:, None] / (a * b)  # the score is their sum
    left, right = numbers.sum(3), numbers.sum(2)
    total = numbers.sum((2, 3))[..., None]
    changes = LineChanges((total - a * left) / (a - 1), (total - b * right) / (b - 1), numbers)
    one = torch.ones(1, dtype=torch.float64)
    variance, _ = changes.variances(BlockGroup(torch.tensor([0]), (a, b), one, one))
    expected = 4 / a + 1 / b + 9 / (a * b)
    assert numbers.sum((1, 2, 3)).var() == pytest.approx(expected, rel=0.05)
    assert variance.mean() == pytest.approx(expected, rel=0.05)


def test_a_side_without_noise_adds_nothing():
    x, y = make_blocks(Scaling(False, False, False), rows=1)
    changes = changes_of(x, y, Scaling(False, False, False))
    none, one = torch.zeros(3, dtype=torch.float64), torch.ones(3, dtype=torch.float64)

    def variance(left: torch.Tensor, right: torch.Tensor) -> float:
        return float(changes.variances(BlockGroup(torch.arange(3), SHAPE[1:], left, right))[0])

    n, deviations = SHAPE[1], changes.left - changes.left.mean(2, keepdim=True)
    assert variance(none, none) == 0
    assert variance(one, none) == pytest.approx(float((n - 1) / n * deviations.square().sum()))


def test_zeros_have_no_noise():
    scaling = Scaling(True, True, True)
    x, y = torch.zeros(2, *SHAPE), torch.zeros(SHAPE)
    changes = changes_of(x, y, scaling)
    for part in (changes.left, changes.right, changes.numbers):
        assert part.eq(0).all()


def test_a_block_with_a_single_line_that_is_not_zero_stays_finite():
    x = torch.zeros(1, *SHAPE)
    x[0, 0, 0] = 1
    x = scale(x, True, False)
    changes = changes_of(x, x[0], Scaling(False, True, True))
    assert changes.left.isfinite().all()
    assert changes.left.abs().max() < 1.1
