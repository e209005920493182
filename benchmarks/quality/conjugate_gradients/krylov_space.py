"""Solutions of one linear system for many right sides, all of them taken from the space that their products span.

Legend: r right sides, k iterations, K = k r, D unknowns, more than K + r.

The iterate of block conjugate gradients is the vector of the Krylov space with the smallest error in the norm of the
matrix. The space is kept here as an orthonormal basis, so that such a vector is the solution of a system of K unknowns,
after every number of iterations and with every multiple of a second, diagonal matrix, the damping: A + c Λ. A has the
damping c₀ Λ in it, with which the space was built.

Source: O'Leary, The Block Conjugate Gradient Algorithm and Related Methods (1980).
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor


@dataclass(frozen=True)
class KrylovSpace:
    """What of a Krylov space all solutions are made of, in float64. Its basis has K + r vectors.

    Attributes:
        right_sides: The right sides [r, r], as combinations of the first r vectors of the basis, in columns.
        images: A times the first K vectors of the basis [K + r, K], as combinations of the basis, in columns.
        damping: Products of the basis and of Λ times the first K vectors [K + r, K].
        damping_squares: Products of Λ times the first K vectors with each other [K, K].
        built_damping: c₀.
    """

    right_sides: Float[Tensor, "r r"]
    images: Float[Tensor, "K_and_r K"]
    damping: Float[Tensor, "K_and_r K"]
    damping_squares: Float[Tensor, "K K"]
    built_damping: float

    @property
    def iterations(self) -> int:
        """k."""
        return self.images.shape[1] // len(self.right_sides)

    def solve(self, iterations: int, damping: float) -> tuple[Float[Tensor, "K r"], Float[Tensor, " r"]]:
        """Solves (A + (c - c₀) Λ) x = b for all right sides b, as well as some iterations can.

        Args:
            iterations: How many of them, from 1 to all.
            damping: c.

        Returns:
            The solutions as combinations of the basis, in columns, and the lengths of what is left of the right sides
            in units of their own.
        """
        r = len(self.right_sides)
        size, extra = iterations * r, damping - self.built_damping
        matrix = self.images[:size, :size] + extra * self.damping[:size, :size]
        target = torch.zeros(size + r, r, dtype=matrix.dtype)
        target[:r] = self.right_sides
        solutions = torch.linalg.solve((matrix + matrix.mT) / 2, target[:size])
        # What is left is a part u in the basis, and - (c - c₀) Λ x, which leads out of it.
        inside = target - self.images[: size + r, :size] @ solutions
        crossed = (inside * (self.damping[: size + r, :size] @ solutions)).sum(0)
        outside = (solutions * (self.damping_squares[:size, :size] @ solutions)).sum(0)
        left = inside.square().sum(0) - 2 * extra * crossed + extra**2 * outside
        return solutions, (left.clamp_min(0) / target.square().sum(0)).sqrt()


def build_krylov_space(
    multiply: Callable[[Float[Tensor, "r D"]], Float[Tensor, "r D"]],
    right_sides: Float[Tensor, "r D"],
    damping: Float[Tensor, " D"],
    built_damping: float,
    iterations: int,
) -> tuple[KrylovSpace, Float[Tensor, "K D"]]:
    """Builds the space, of which each iteration multiplies r vectors.

    Args:
        multiply: Multiplies the symmetric matrix without damping, in rows.
        right_sides: The right sides, as rows.
        damping: Λ.
        built_damping: c₀.
        iterations: k.

    Returns:
        The space, and the first K vectors of its basis as rows.
    """
    r, dtype = len(right_sides), right_sides.dtype
    basis = torch.zeros((iterations + 1) * r, right_sides.shape[1], dtype=dtype)
    images = torch.zeros(len(basis), iterations * r, dtype=torch.float64)
    basis[:r], start = _orthonormalise(right_sides, basis[:0])
    for number in range(iterations):
        block = slice(number * r, (number + 1) * r)
        ready, rest = basis[: block.stop], slice(block.stop, block.stop + r)
        image = multiply(basis[block]) + built_damping * damping * basis[block]
        basis[rest], _ = _orthonormalise(image, ready)
        images[: rest.stop, block] = (basis[: rest.stop] @ image.mT).double()
    used = basis[: iterations * r]
    damping_gram = torch.cat([basis @ (damping * part).mT for part in used.split(r)], dim=1)
    squares = torch.cat([used @ (damping.square() * part).mT for part in used.split(r)], dim=1)
    space = KrylovSpace(start.double(), images, damping_gram.double(), squares.double(), built_damping)
    return space, used


def _orthonormalise(rows: Tensor, basis: Tensor) -> tuple[Tensor, Tensor]:
    """Returns orthonormal rows Q that are orthogonal to the basis, and R with rows = Rᵀ Q up to the basis."""
    triangle = torch.eye(len(rows), dtype=rows.dtype)
    for _ in range(2):  # once is not enough in float32, nor where hardly anything is left of a row
        columns, part = torch.linalg.qr((rows - (rows @ basis.mT) @ basis).mT)
        rows, triangle = columns.mT, part @ triangle
    return rows, triangle
