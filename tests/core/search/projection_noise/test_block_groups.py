"""What the shape of a module and the kind of projection say about the noise of its sides."""

import math

import pytest
import torch

from bergson_core.gradients.gradient_transforms import draw_projections
from bergson_core.gradients.processor import GradientProcessor
from bergson_core.models.modules import TrackedModule
from bergson_core.schemas.build import GradientSpec
from bergson_core.search.projection_noise.block_groups import block_groups
from bergson_core.storage.manifest import ModuleEntry

WIDE, SHORT = (64, 48), (6, 40)
"""(o, i) of two modules."""


def entries(*shapes: tuple[int, int]) -> list[ModuleEntry]:
    return [
        ModuleEntry(name=f"m{number}", out_features=o, in_features=i) for number, (o, i) in enumerate(shapes)
    ]


def test_independent_lines_have_all_of_their_noise():
    (group,) = block_groups(entries(WIDE, SHORT), GradientSpec(projection_dim=8, projection="rademacher"))
    assert (group.modules.tolist(), group.shape) == ([0, 1], (8, 8))
    assert group.left_factors.tolist() == group.right_factors.tolist() == [1, 1]


def test_orthogonal_lines_lose_the_share_of_the_side_that_they_keep():
    wide, short = block_groups(entries(WIDE, SHORT, WIDE), GradientSpec(projection_dim=8))
    assert (wide.modules.tolist(), wide.shape) == ([0, 2], (8, 8))
    assert wide.left_factors.tolist() == pytest.approx([1 - 8 / 64] * 2)
    assert wide.right_factors.tolist() == pytest.approx([1 - 8 / 48] * 2)
    assert (short.modules.tolist(), short.shape) == ([1], (6, 10))
    assert short.left_factors.tolist() == [0]
    assert short.right_factors.tolist() == pytest.approx([1 - 10 / 40])


def test_signs_of_orthogonal_lines_lose_only_the_part_that_is_proportional():
    (group,) = block_groups(entries((8, 8)), GradientSpec(projection_dim=8, rows="sign"))
    assert group.left_factors.tolist() == pytest.approx([1 - 2 / math.pi])


@pytest.mark.parametrize("shape", [WIDE, SHORT, (40, 6), (3, 3), (200, 9)])
def test_a_block_has_the_shape_that_the_projections_give_it(shape):
    spec = GradientSpec(projection_dim=8)
    tracked = TrackedModule("m0", torch.nn.Linear(shape[1], shape[0], bias=False), *shape)
    left, right = draw_projections(GradientProcessor(8, projection="orthogonal"), tracked)
    (group,) = block_groups(entries(shape), spec)
    assert group.shape == (len(left), len(right))
    blocks = torch.arange(2.0 * 64).reshape(2, 1, 64)
    assert group.take(blocks)[1, 0].flatten().tolist() == list(range(64, 64 + len(left) * len(right)))


def test_a_single_line_shows_no_spread():
    assert block_groups(entries(WIDE), GradientSpec(projection_dim=1)) is None
    assert block_groups(entries((1, 40)), GradientSpec(projection_dim=8)) is not None  # kept whole
    assert block_groups(entries((1, 40)), GradientSpec(projection_dim=1)) is None


def test_a_short_side_with_an_unknown_bias_has_an_unknown_shape():
    biased = {"include_bias": True, "projection_dim": 8}
    assert block_groups(entries(SHORT), GradientSpec(**biased)) is None
    assert block_groups(entries(WIDE), GradientSpec(**biased)) is not None
    assert block_groups(entries(SHORT), GradientSpec(**biased, projection="rademacher")) is not None
