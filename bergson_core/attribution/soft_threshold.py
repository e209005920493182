"""The soft threshold of scores: it takes the noise of projected gradients out of scores before they are summed.

Legend: q queries, n documents.
"""

from typing import Final

import numpy as np
from jaxtyping import Float

from bergson_core.schemas.totals.spec import THRESHOLD_OF_SUMS

_NORMAL_MAD: Final = 0.6745
"""Median of |x| for a normally distributed x with a standard deviation of 1."""


def soft_threshold(
    scores: Float[np.ndarray, "q n"], times: float = THRESHOLD_OF_SUMS
) -> Float[np.ndarray, "q n"]:
    """Returns scores relative to their query's median, drawn towards it by `times` the noise, and 0 within that.

    Every score of a projected gradient has noise, and a sum over thousands of documents consists mostly of it. The
    order of the scores that stand out does not change.

    Args:
        scores: Scores of all documents with each query.
        times: Width of the threshold, in units of each query's noise.

    Source: TRAK (Park et al., arXiv 2303.14186), section 3.2, step 5, which searches for the threshold instead.
    """
    return shrink_toward(scores, *median_and_noise(scores), times)


def shrink_toward(scores: np.ndarray, median: np.ndarray, noise: np.ndarray, times: float) -> np.ndarray:
    """Returns scores relative to `median`, drawn towards it by `times` the noise, and 0 within that.

    The arrays are broadcast against each other.
    """
    relative = scores - median
    return np.sign(relative) * np.maximum(np.abs(relative) - times * noise, 0)


def median_and_noise(
    scores: Float[np.ndarray, "q n"],
) -> tuple[Float[np.ndarray, "q 1"], Float[np.ndarray, "q 1"]]:
    """Returns the median and the noise of each query's scores.

    The noise is the median distance from the median, in units of a normal distribution's standard deviation. Most
    documents have nothing to do with a query, so their scores are noise.
    """
    median = np.median(scores, axis=1, keepdims=True)
    return median, np.median(np.abs(scores - median), axis=1, keepdims=True) / _NORMAL_MAD
