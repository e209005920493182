"""Random projections keep inner products on average, and are the same everywhere."""

import subprocess
import sys

import pytest
import torch

from bergson_core.gradients.projection import (
    PROJECTIONS,
    block_shape,
    normal_matrix,
    orthogonal_matrix,
    rademacher_matrix,
)


@pytest.mark.parametrize("kind", PROJECTIONS)
@pytest.mark.parametrize("shape", [(3, 50), (40, 6), (17, 33)])
@pytest.mark.parametrize("p", [4, 16])
def test_inner_products_are_kept_on_average_over_seeds(shape, p, kind):
    torch.manual_seed(0)
    out_features, in_features = shape
    g = torch.randn(shape, dtype=torch.float64)
    h = g + torch.randn(shape, dtype=torch.float64)
    products = []
    for seed in range(800):
        left, right = (
            PROJECTIONS[kind](seed, "m", "left", p, out_features),
            PROJECTIONS[kind](seed, "m", "right", p, in_features),
        )
        products.append(((left @ g @ right.T) * (left @ h @ right.T)).sum())
    products = torch.stack(products)
    error = products.std() / len(products) ** 0.5
    assert abs(products.mean() - (g * h).sum()) < 4 * error
    assert error < 0.1 * (g * h).sum().abs()


def test_entries_are_signs_over_the_root_of_p():
    assert set(rademacher_matrix(0, "m", "left", 16, 100).abs().flatten().tolist()) == {0.25}


def test_normal_entries_are_normal_over_the_root_of_p():
    entries = normal_matrix(0, "m", "left", 16, 4001).mul(4).flatten()
    ordered, steps = (
        entries.sort().values,
        (torch.arange(len(entries), dtype=torch.float64) + 0.5) / len(entries),
    )
    expected = torch.distributions.Normal(0.0, 1.0).icdf(steps)
    assert (ordered - expected)[1000:-1000].abs().max() < 0.05
    assert abs((entries[:-1] * entries[1:]).mean()) < 0.02


@pytest.mark.parametrize(("rows", "columns"), [(1, 1), (3, 50), (16, 17), (64, 14_336)])
def test_orthogonal_rows_have_equal_lengths_and_right_angles(rows, columns):
    matrix = orthogonal_matrix(0, "m", "left", rows, columns)
    expected = torch.eye(rows, dtype=torch.float64) * columns / rows
    torch.testing.assert_close(matrix @ matrix.mT, expected, rtol=0, atol=1e-11 * columns)


@pytest.mark.parametrize(("rows", "columns"), [(1, 1), (17, 17), (40, 6)])
def test_an_orthogonal_projection_loses_nothing_of_a_side_that_it_does_not_shorten(rows, columns):
    matrix = orthogonal_matrix(0, "m", "left", rows, columns)
    torch.testing.assert_close(matrix.mT @ matrix, torch.eye(columns, dtype=torch.float64))


def test_an_orthogonal_projection_to_half_of_the_sides_has_half_of_the_error():
    torch.manual_seed(0)
    g, h = torch.randn(2, 64, 64, dtype=torch.float64)

    def error(kind: str) -> torch.Tensor:
        products = []
        for seed in range(200):
            left, right = (PROJECTIONS[kind](seed, "m", side, 32, 64) for side in ("left", "right"))
            products.append(((left @ g @ right.T) * (left @ h @ right.T)).sum())
        return (torch.stack(products) - (g * h).sum()).square().mean()

    assert error("orthogonal") < 0.6 * error("rademacher")


@pytest.mark.parametrize(
    ("sides", "shape"),
    [((8, 576), (8, 32)), ((576, 8), (32, 8)), ((8, 20), (8, 20)), ((7, 99), (7, 36)), ((64, 64), (16, 16))],
)
def test_an_orthogonal_block_keeps_a_short_side_whole_and_gives_the_other_what_is_left(sides, shape):
    assert block_shape("orthogonal", 16, *sides) == shape
    assert block_shape("rademacher", 16, *sides) == (16, 16)


@pytest.mark.parametrize("kind", PROJECTIONS)
@pytest.mark.parametrize("other", [(1, "m", "left"), (0, "n", "left"), (0, "m", "right")])
def test_seed_name_and_side_each_give_other_matrices(other, kind):
    draw = PROJECTIONS[kind]
    assert not torch.equal(draw(0, "m", "left", 8, 64), draw(*other, 8, 64))


def test_another_process_draws_the_same_matrix():
    code = (
        "import torch; torch.manual_seed(99); from bergson_core.gradients.projection import rademacher_matrix;"
        "print(rademacher_matrix(7, 'gpt.layer', 'left', 5, 13).mul(5**.5).round().int().flatten().tolist())"
    )
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    matrix = rademacher_matrix(7, "gpt.layer", "left", 5, 13).mul(5**0.5).round().int().flatten().tolist()
    assert printed.strip() == str(matrix)


def test_the_signs_are_the_same_in_every_release():
    first = rademacher_matrix(0, "gpt_neox.layers.0.mlp", "right", 2, 8)
    assert (first > 0).int().flatten().tolist() == PINNED


def test_the_normal_numbers_are_the_same_in_every_release():
    entries = normal_matrix(0, "gpt_neox.layers.0.mlp", "right", 1, 3).flatten().tolist()
    assert entries == pytest.approx(PINNED_NORMAL, rel=1e-12)


def test_the_orthogonal_numbers_are_the_same_in_every_release():
    entries = orthogonal_matrix(0, "gpt_neox.layers.0.mlp", "right", 2, 3).flatten().tolist()
    assert entries == pytest.approx(PINNED_ORTHOGONAL, abs=1e-14)


PINNED_ORTHOGONAL = [-(0.75**0.5), 0, 0.75**0.5, -(0.5**0.5), 0.5**0.5, -(0.5**0.5)]
PINNED_NORMAL = [0.8511492331853004, 1.1041185174413584, 0.6898889782769617]
PINNED = [1, 1, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1]
