"""Solutions of a Krylov space are the iterates of conjugate gradients, for every damping."""

import pytest
import torch
from torch import Tensor

from benchmarks.quality.conjugate_gradients.krylov_space import build_krylov_space

UNKNOWNS = 24


def make_system(right_sides: int) -> tuple[Tensor, Tensor, Tensor]:
    """Returns a positive matrix, right sides as rows, and a diagonal."""
    generator = torch.Generator().manual_seed(1)
    root = torch.randn(UNKNOWNS, UNKNOWNS, generator=generator, dtype=torch.float64)
    targets = torch.randn(right_sides, UNKNOWNS, generator=generator, dtype=torch.float64)
    return root @ root.mT / UNKNOWNS, targets, torch.rand(UNKNOWNS, generator=generator, dtype=torch.float64)


def conjugate_gradients(matrix: Tensor, target: Tensor, iterations: int) -> Tensor:
    """Returns the iterate of the textbook's loop, from 0 on."""
    solution, left = torch.zeros_like(target), target.clone()
    direction = left.clone()
    for _ in range(iterations):
        image = matrix @ direction
        step = (left @ left) / (direction @ image)
        solution = solution + step * direction
        left_before, left = left, left - step * image
        direction = left + (left @ left) / (left_before @ left_before) * direction
    return solution


@pytest.mark.parametrize("iterations", [1, 3, 7])
def test_solutions_for_one_right_side_are_the_iterates_of_conjugate_gradients(iterations: int) -> None:
    matrix, target, damping = make_system(1)
    space, basis = build_krylov_space(lambda rows: rows @ matrix, target, damping, 0.5, 7)
    solutions, _ = space.solve(iterations, 0.5)
    expected = conjugate_gradients(matrix + 0.5 * damping.diag(), target[0], iterations)
    torch.testing.assert_close(solutions[:, 0] @ basis[: len(solutions)], expected)


@pytest.mark.parametrize("value", [0.01, 0.1, 1.0])
def test_a_space_of_all_unknowns_solves_the_system_with_every_damping(value: float) -> None:
    matrix, targets, damping = make_system(3)
    damped = matrix + value * damping.diag()
    space, basis = build_krylov_space(lambda rows: rows @ matrix, targets, damping, 0.1, UNKNOWNS // 3)
    solutions = space.solve(UNKNOWNS // 3, value)[0].mT @ basis
    torch.testing.assert_close(solutions, torch.linalg.solve(damped, targets.mT).mT)


@pytest.mark.parametrize("value", [0.01, 0.1, 1.0])
def test_what_is_left_is_the_length_of_the_residual(value: float) -> None:
    matrix, targets, damping = make_system(3)
    space, basis = build_krylov_space(lambda rows: rows @ matrix, targets, damping, 0.1, 5)
    for iterations in (1, 5):
        solutions, left = space.solve(iterations, value)
        products = solutions.mT @ basis[: 3 * iterations] @ (matrix + value * damping.diag())
        torch.testing.assert_close(left, (targets - products).norm(dim=1) / targets.norm(dim=1))


def test_right_sides_that_depend_on_each_other_are_solved_alike() -> None:
    matrix, targets, damping = make_system(2)
    targets = torch.stack([targets[0], targets[1], targets[0] - 2 * targets[1]])
    space, basis = build_krylov_space(lambda rows: rows @ matrix, targets, damping, 1.0, 5)
    solutions = space.solve(5, 1.0)[0].mT @ basis
    torch.testing.assert_close(solutions[2], solutions[0] - 2 * solutions[1])
