"""Scores from a rounded query are close enough to the exact ones to tell which rows cannot be among the best."""

import numpy as np
import pytest
import torch

from bergson_core.search.bit_planes import BitPlanes
from bergson_core.search.exact_scores import ExactScorer
from bergson_core.search.profile import Profile
from bergson_core.shards.codecs import CODECS
from bergson_core.shards.shard import RowShape
from tests.core.search.random_shards import ROWS, write_shards

SHAPES = [(3, 13), (1, 8), (4, 1024), (2, 9216)]


def random_numbers(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("tail", [1, 5], ids=["normal", "a few far larger"])
@pytest.mark.parametrize(("modules", "width"), SHAPES)
def test_scores_are_off_by_no_more_than_the_error_that_is_stated(modules, width, tail):
    codec, weights = CODECS["sign"], random_numbers(modules, width, seed=1)
    weights = weights * weights.abs() ** (tail - 1)
    rows = random_numbers(500, modules, width, seed=2)
    rows[::7, 0] = 0
    rows[5] = 0
    blocks, scales = (part.numpy() for part in codec.encode(rows))
    exact = codec.block_products(blocks, scales, weights).sum(1).numpy()
    planes = BitPlanes.of(weights)
    scores = planes.scores(blocks, scales)
    assert np.abs(scores - exact).max() <= planes.error + 1e-5 * np.abs(exact).max()
    assert planes.error < (0.03 if tail == 1 else 0.3) * exact.std()
    assert scores[5] == 0


def test_a_query_of_zeros_scores_zero():
    blocks, scales = (part.numpy() for part in CODECS["sign"].encode(random_numbers(4, 3, 13, seed=0)))
    np.testing.assert_allclose(BitPlanes.of(torch.zeros(3, 13)).scores(blocks, scales), 0, atol=1e-30)


@pytest.mark.parametrize("sign", [1, -1], ids=["highest", "lowest"])
@pytest.mark.parametrize("count", [1, 10, 100, 176, 177, 1000])
def test_the_rows_that_may_be_best_include_the_best(tmp_path, sign, count):
    shards = write_shards(tmp_path, RowShape("sign", 3, 200))
    weights = random_numbers(3, 200, seed=9)
    lengths = [np.ones((rows, 1), dtype=np.float32) for rows in ROWS]
    scorer = ExactScorer(shards, Profile(None, None, None, lengths, "block", is_default=True))
    shard_numbers = np.repeat(np.arange(len(shards)), [shard.entry.rows for shard in shards])
    offsets = np.concatenate([np.arange(shard.entry.rows) for shard in shards])
    scores = scorer.module_scores(weights, shard_numbers, offsets).sum(1).numpy()
    may_be_best = scorer.may_be_best(BitPlanes.of(weights), sign, shard_numbers, offsets, count)
    best = np.argsort(-sign * scores)[:count]
    assert may_be_best[best].all()
    assert may_be_best.sum() <= 1.5 * count + 5
