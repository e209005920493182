"""Errors of scores and of sums of scores, computed from φ."""

from dataclasses import replace

import pytest
import torch

from bergson_core.schemas.build import GradientSpec, Normalize
from bergson_core.search.features import compute_features
from bergson_core.search.projection_noise import score_noise
from bergson_core.search.projection_noise.block_groups import block_groups
from bergson_core.search.projection_noise.score_noise import ScoreNoise, SumOfScores
from bergson_core.storage.manifest import ModuleEntry

NORMALIZES: list[Normalize] = ["none", "row", "block"]


def make_noise(normalize: Normalize, p: int = 4) -> ScoreNoise:
    """Returns the noise of two modules of different shapes, of which one has blocks that are not square."""
    modules = [
        ModuleEntry(name="a", out_features=3, in_features=40),
        ModuleEntry(name="b", out_features=30, in_features=40),
    ]
    groups = block_groups(modules, GradientSpec(projection_dim=p))
    assert groups is not None
    return ScoreNoise(groups, normalize, has_signs=False)


def make_features(normalize: Normalize, rows: int) -> tuple[torch.Tensor, torch.Tensor]:
    blocks = torch.randn(rows + 1, 2, 16, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    blocks[:, 0, 15:] = 0  # the block of the first module has 3 × 5 numbers
    phi, _ = compute_features(blocks, None, normalize)
    phi = phi.reshape(blocks.shape)
    return phi[1:], phi[0]


def test_the_error_of_a_score_with_itself_is_zero_where_scores_are_cosines():
    for normalize in ("row", "block"):
        _, query = make_features(normalize, 1)
        for sign in (1, -1):
            (error,) = make_noise(normalize).errors(sign * query[None], query)
            assert error.standard_error == pytest.approx(0, abs=1e-9)
            assert error.largest == 1


@pytest.mark.parametrize("normalize", NORMALIZES)
def test_an_error_does_not_depend_on_other_rows_or_on_how_many_are_looked_at_together(normalize, monkeypatch):
    rows, query = make_features(normalize, 20)
    noise = make_noise(normalize)
    together = noise.errors(rows, query)
    alone = [noise.errors(row[None], query)[0] for row in rows]
    monkeypatch.setattr(score_noise, "_CHUNK_NUMBERS", 3 * query.numel())
    assert together == alone == noise.errors(rows, query)
    assert all(error.standard_error > 0 and error.freedom >= 1 for error in alone)


@pytest.mark.parametrize("normalize", NORMALIZES)
@pytest.mark.parametrize("is_sum", [False, True])
def test_the_sum_of_one_score_has_its_error(normalize, is_sum):
    rows, query = make_features(normalize, 1)
    noise = make_noise(normalize)
    total = SumOfScores(noise, is_sum)
    total.add(rows, query)
    (expected,) = noise.errors(rows, query, is_sum=is_sum)
    assert total.error() == expected
    assert total.total == pytest.approx(float((rows * query).sum()))


@pytest.mark.parametrize("normalize", NORMALIZES)
def test_the_error_of_copies_adds_up_and_that_of_opposites_cancels(normalize):
    rows, query = make_features(normalize, 1)
    noise = make_noise(normalize)
    copies, opposites = SumOfScores(noise), SumOfScores(noise)
    for _ in range(3):
        copies.add(rows, query)
    opposites.add(torch.cat([rows, -rows]), query)
    (one,) = noise.errors(rows, query)
    assert copies.rows == 3
    assert copies.error().standard_error == pytest.approx(3 * one.standard_error)
    assert copies.error().largest == 3 * one.largest
    assert opposites.error().standard_error == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize("normalize", NORMALIZES)
@pytest.mark.parametrize(("has_signs", "is_sum"), [(False, False), (True, False), (False, True)])
def test_the_variance_of_checkpoints_is_that_of_the_mean_of_their_scores(normalize, has_signs, is_sum):
    """Each checkpoint has projections of its own, so that the variances of their scores add up."""
    checkpoints, rows = 3, 5
    alone = replace(make_noise(normalize), has_signs=has_signs)
    groups = [
        replace(group, modules=group.modules + 2 * number)
        for group in alone.groups
        for number in range(checkpoints)
    ]
    blocks = torch.randn(
        rows + 1, 2 * checkpoints, 16, generator=torch.Generator().manual_seed(0), dtype=torch.float64
    )
    blocks[:, ::2, 15:] = 0
    phi = compute_features(blocks, None, normalize, checkpoints)[0].reshape(blocks.shape)
    together = ScoreNoise(groups, normalize, has_signs, checkpoints)
    errors = together.errors(phi[1:], phi[0], is_sum=is_sum)
    variances = torch.zeros(rows, dtype=torch.float64)
    for number in range(checkpoints):
        part = blocks[:, 2 * number : 2 * number + 2]
        own = compute_features(part, None, normalize)[0].reshape(part.shape)
        single = alone.errors(own[1:], own[0], is_sum=is_sum)
        variances += torch.tensor([error.standard_error for error in single], dtype=torch.float64).square()
    expected = variances.sqrt() / checkpoints
    assert [error.standard_error for error in errors] == pytest.approx(expected.tolist(), rel=1e-9)


@pytest.mark.parametrize("normalize", NORMALIZES)
def test_checkpoints_that_a_query_leaves_out_add_no_noise(normalize):
    noise, (rows, query) = make_noise(normalize), make_features(normalize, 3)
    groups = [
        replace(group, modules=group.modules + 2 * number) for group in noise.groups for number in range(2)
    ]
    both = ScoreNoise(groups, normalize, has_signs=False, checkpoints=2)
    errors = both.errors(torch.cat([rows, rows.flip(0)], 1), torch.cat([query, 0 * query]))
    expected = [error.standard_error for error in noise.errors(rows, query)]
    assert [error.standard_error for error in errors] == pytest.approx(expected, rel=1e-9)


def test_a_sum_of_no_rows_has_no_error():
    total = SumOfScores(make_noise("row"))
    assert (total.total, total.error().interval(0)) == (0, (0, 0))


def test_a_row_of_zeros_scores_zero_under_every_projection():
    rows, query = make_features("row", 1)
    (error,) = make_noise("row").errors(0 * rows, query)
    assert error.interval(0.0) == (0, 0)
