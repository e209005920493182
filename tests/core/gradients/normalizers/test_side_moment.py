"""A projection times the root of a moment is that of the exact root, from as many vectors as there are."""

import pytest
import torch

from bergson_core.gradients.normalizers.matrix_root import inverse_root
from bergson_core.gradients.normalizers.side_moment import SideMoment, side_moment_bytes

FEATURES = 24
EXACT = {"rtol": 1e-9, "atol": 1e-11}


def make_vectors(count: int, spread: float = 3.0) -> torch.Tensor:
    """Returns vectors [n, d] whose features have sizes of `spread` orders of magnitude, and a common part."""
    generator = torch.Generator().manual_seed(count)
    sizes = torch.logspace(0, -spread, FEATURES, dtype=torch.float64)
    return torch.randn(count, FEATURES, generator=generator, dtype=torch.float64) * sizes + 0.5


@pytest.mark.parametrize("damping", [1e-3, 0.1, 10.0])
@pytest.mark.parametrize("count", [1, 2, 7, FEATURES - 1, FEATURES, FEATURES + 1, 100])
def test_a_product_with_the_root_is_that_of_the_exact_root(count, damping):
    vectors = make_vectors(count)
    projection = torch.randn(5, FEATURES, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    expected = projection @ inverse_root(vectors.mT @ vectors / count, damping)
    torch.testing.assert_close(SideMoment(vectors).root_product(projection, damping), expected, **EXACT)
    whole = SideMoment(vectors).root_product(torch.eye(FEATURES, dtype=torch.float64), damping)
    torch.testing.assert_close(projection @ whole, expected, **EXACT)


@pytest.mark.parametrize("sizes", [(3, 4, 5), (30, 40), (5, 40, 3), (0, 7, 0), (23, 1, 1), (10, 30)])
def test_a_moment_of_several_batches_is_that_of_all_their_vectors(sizes):
    vectors = make_vectors(sum(sizes))
    first, *others = vectors.split(list(sizes))
    moment = SideMoment(first)
    for other in others:
        moment = moment.add_(SideMoment(other))
    identity = torch.eye(FEATURES, dtype=torch.float64)
    assert moment.count == len(vectors)
    torch.testing.assert_close(
        moment.root_product(identity, 1e-3), SideMoment(vectors).root_product(identity, 1e-3), **EXACT
    )


@pytest.mark.parametrize("count", [0, 3, 50])
def test_a_side_that_was_silent_has_a_root_of_zeros(count):
    moment = SideMoment(torch.zeros(count, FEATURES, dtype=torch.float64))
    assert not moment.root_product(torch.ones(2, FEATURES, dtype=torch.float64), 1e-3).any()


@pytest.mark.parametrize("count", [3, 24, 60])
def test_no_decomposed_matrix_is_larger_than_the_vectors_are_many_or_wide(count):
    sizes = []

    def eigh(matrix: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        sizes.append(len(matrix))
        return torch.linalg.eigh(matrix)

    SideMoment(make_vectors(count)).root_product(torch.eye(FEATURES, dtype=torch.float64), 1e-3, eigh)
    assert sizes == [min(count, FEATURES)]


def test_vectors_of_a_wide_side_are_kept_and_those_of_a_narrow_one_are_summed():
    assert side_moment_bytes(8192, 14336) == 4 * 8192 * 14336
    assert side_moment_bytes(8192, 4096) == 4 * 4096 * 4096
