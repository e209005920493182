"""TODO"""

from typing import Final

import numpy as np
from jaxtyping import Float

_NORMAL_MAD: Final = 0.6745
"""Median of |x| for x of a normal distribution of standard deviation 1."""


def soft_threshold(scores: Float[np.ndarray, "q n"], times: float = 3.0) -> Float[np.ndarray, "q n"]:
    """Scores as they lie about their query's median, drawn towards it by `times` its noise, and 0 within that.

    Of a projected gradient every score has noise, and a sum over thousands of documents has mostly that. The order of
    the scores that stand out stays. Source: TRAK, section 3.2, step 5, which searches the threshold instead.
    """
    return shrink_toward(scores, *median_and_noise(scores), times)


def shrink_toward(scores: np.ndarray, middle: np.ndarray, noise: np.ndarray, times: float) -> np.ndarray:
    """Scores as they lie about `middle`, drawn towards it by `times` the noise, and 0 within that."""
    about = scores - middle
    return np.sign(about) * np.maximum(np.abs(about) - times * noise, 0)


def median_and_noise(
    scores: Float[np.ndarray, "q n"],
) -> tuple[Float[np.ndarray, "q 1"], Float[np.ndarray, "q 1"]]:
    """(median, noise) of each query's scores.

    The noise is the median distance from the median, in units of a normal distribution's standard deviation: most
    documents say nothing of most queries.
    """
    middle = np.median(scores, axis=1, keepdims=True)
    return middle, np.median(np.abs(scores - middle), axis=1, keepdims=True) / _NORMAL_MAD
