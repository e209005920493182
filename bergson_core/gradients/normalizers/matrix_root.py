"""The damped inverse square root of a second moment, by an eigendecomposition.

Legend: d side of the matrix.
"""

from collections.abc import Callable
from typing import TypeAlias

import torch
from jaxtyping import Float, Float64
from torch import Tensor

EighFunction: TypeAlias = Callable[[Tensor], tuple[Tensor, Tensor]]
"""Decomposes a symmetric matrix [d, d] into its eigenvalues [d] and its eigenvectors [d, d], the columns.

The default everywhere is `torch.linalg.eigh`. Each function that decomposes matrices takes another one, so that an
estimate of a build's cost can time one decomposition of each size instead of doing them all.
"""


def inverse_root(
    moment: Float[Tensor, "d d"], damping: float, eigh: EighFunction = torch.linalg.eigh
) -> Float64[Tensor, "d d"]:
    """Returns (M + damping · mean eigenvalue · I)^-½ of a symmetric matrix M, computed in float64.

    Args:
        moment: M [d, d], positive semi-definite; eigenvalues below zero are rounding errors and count as zero.
        damping: What is added to each eigenvalue, in units of the mean eigenvalue.
        eigh: The eigendecomposition to use.

    Returns:
        A symmetric matrix [d, d] in float64; all zeros where M is zero.
    """
    values, vectors = eigh(moment.double())
    values = values.clamp_min(0)
    mean = values.mean()
    if mean == 0:
        return torch.zeros_like(vectors)
    return vectors * (values + damping * mean).rsqrt() @ vectors.mT
