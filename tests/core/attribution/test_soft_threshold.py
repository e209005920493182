"""The soft threshold takes the noise of the projection out of scores."""

import numpy as np

from bergson_core.attribution.soft_threshold import soft_threshold


def test_the_soft_threshold_sets_noise_to_zero_and_keeps_the_order_of_scores_above_it() -> None:
    scores = np.random.default_rng(0).standard_normal((2, 2000)) + 5
    scores[:, :3] += [[20, 30, 40], [40, 30, 20]]
    shrunk = soft_threshold(scores)
    assert (np.count_nonzero(shrunk[:, 3:], axis=1) < 20).all()
    assert (np.argsort(-shrunk)[:, :3] == np.argsort(-scores)[:, :3]).all()
    np.testing.assert_allclose(shrunk[:, :3], scores[:, :3] - 5 - 3, atol=0.5)
