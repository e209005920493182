"""Nine of ten intervals of groups hold what they are meant to hold, although the groups were chosen by their sums.

Gradients are random here, so that scores are mostly noise and the first groups are the first by chance.
"""

from collections.abc import Iterator

import pytest
import torch

from bergson_core.schemas.build import GradientSpec
from bergson_core.search.features import compute_features
from bergson_core.search.projection_noise.block_groups import block_groups
from bergson_core.search.projection_noise.intervals import Interval
from bergson_core.search.projection_noise.score_noise import ScoreNoise, SumOfScores
from bergson_core.storage.manifest import ModuleEntry

DOCUMENTS, MODULES, SIDE, P, SEEDS = 240, 3, 32, 4, 40


def random_gradients() -> torch.Tensor:
    """Returns whole gradients [n, m, o, i], of which the first is that of the query."""
    generator = torch.Generator().manual_seed(0)
    return torch.randn(1 + DOCUMENTS, MODULES, SIDE, SIDE, generator=generator, dtype=torch.float64)


def iter_features(wholes: torch.Tensor) -> Iterator[torch.Tensor]:
    """Yields φ [n, m, d] of these gradients under the projections of one seed after another."""
    for seed in range(SEEDS):
        generator = torch.Generator().manual_seed(1 + seed)
        left, right = torch.randn(2, MODULES, P, SIDE, generator=generator, dtype=torch.float64)
        rows = (left @ wholes @ right.mT).flatten(2)
        yield compute_features(rows, None, "row")[0].reshape(rows.shape)


def make_noise() -> ScoreNoise:
    modules = [ModuleEntry(name=str(k), out_features=SIDE, in_features=SIDE) for k in range(MODULES)]
    groups = block_groups(modules, GradientSpec(projection_dim=P, projection="normal"))
    assert groups is not None
    return ScoreNoise(groups, "row", has_signs=False)


def first_groups(
    x: torch.Tensor, y: torch.Tensor, folded: int, count: int, noise: ScoreNoise
) -> Iterator[tuple[torch.Tensor, Interval, Interval]]:
    """Yields the first two groups of an answer: the documents, the interval of their sum, and one that allows for less.

    That is an interval of a sum that was not chosen, or, where members were chosen, of a group whose members were not.

    Args:
        x: φ of the documents.
        y: φ of the query.
        folded: How many of the best documents are folded.
        count: The number of groups.
        noise: The noise of their scores.
    """
    scores = (x * y).sum((1, 2))
    best = scores.argsort(descending=True)[:folded]
    results = {
        number: error.interval_of_result(float(scores[number]), rank, DOCUMENTS)
        for rank, (number, error) in enumerate(zip(best.tolist(), noise.errors(x[best], y), strict=True), 1)
    }
    groups = [members for k in range(count) if len(members := best[best % count == k])]
    groups.sort(key=lambda members: -float(scores[members].sum()))
    for rank, members in enumerate(groups[:2], start=1):
        total = SumOfScores(noise)
        total.add(x[members], y)
        place = total.total, rank, len(groups)
        if folded == DOCUMENTS:
            yield members, total.error().interval_of_group(*place), total.error().interval(total.total)
            continue
        chosen = [results[number] for number in members.tolist()]
        yield (
            members,
            total.error().interval_of_group(*place, chosen),
            total.error().interval_of_group(*place),
        )


@pytest.mark.parametrize(("folded", "count"), [(DOCUMENTS, 80), (48, 3)])
def test_intervals_of_the_first_groups_hold_the_sum_of_whole_scores(folded, count):
    """Intervals that allow for less hold fewer than nine of ten, so that what they allow for counts."""
    wholes, noise = random_gradients(), make_noise()
    unit = torch.nn.functional.normalize(wholes.flatten(1))
    expected = unit[1:] @ unit[0]
    held, held_by_less = [], []
    for phi in iter_features(wholes):
        for members, interval, less in first_groups(phi[1:], phi[0], folded, count, noise):
            target = float(expected[members].sum())
            held.append(interval[0] <= target <= interval[1])
            held_by_less.append(less[0] <= target <= less[1])
    assert sum(held) / len(held) > 0.9
    assert sum(held_by_less) / len(held) < 0.75
