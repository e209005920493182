"""Scores of sign rows from a rounded query: some sixty times as fast as their exact scores, and close to them.

The numbers of a query are rounded to 2^B levels, odd multiples of one step: Σ_b 2^b · s_b with signs s_b = ±1 for each
of B = 10 bits b. So their product with a row of signs is a sum of B products of signs, each of which follows from a
Hamming distance, which FAISS counts 64 signs at a time.

The rounding errors of a query do not depend on a row's signs, so that in the score of a row, whose D numbers are
±1/√D, the error is a sum of D numbers of either sign. By Hoeffding's inequality it is more than `_ERROR_DEVIATIONS`
times the length of the errors over √D for one row of 30 million.

Legend: B bits of a query's number, n rows, m modules, d numbers per module, w bytes that are stored of them, D = m·d.
"""

from dataclasses import dataclass
from typing import Final

import faiss
import numpy as np
from jaxtyping import Float, Float32, Int, UInt8
from torch import Tensor

_BITS: Final = 10
_ERROR_DEVIATIONS: Final = 6.0


@dataclass(frozen=True)
class BitPlanes:
    """A query whose numbers are rounded, as one vector of bits for each bit of its numbers.

    Attributes:
        planes: The vectors of bits [B, m, w], the lowest first.
        unit: What each 1 in the sums of the levels adds to a score.
        module_sums: Sum of the levels of each module [m].
        dimensions: D, how many numbers the query has.
        error: How far below or above its exact score a row's score may lie.
    """

    planes: UInt8[np.ndarray, "B m w"]
    unit: float
    module_sums: Int[np.ndarray, " m"]
    dimensions: int
    error: float

    @classmethod
    def of(cls, weights: Float[Tensor, "m d"]) -> "BitPlanes":
        """Rounds the weights of a query."""
        dimensions, top = weights.numel(), 2**_BITS - 1
        step = float(weights.abs().max()) / top
        steps = ((weights / (step or 1) + top) / 2).round().clamp(0, top)
        levels = 2 * steps - top
        pairs_of_bytes = steps.numpy().astype(">u2")[..., None].view(np.uint8)
        bits = np.unpackbits(pairs_of_bytes, axis=-1)[..., : -_BITS - 1 : -1]  # the lowest first
        return cls(
            planes=np.packbits(bits.transpose(2, 0, 1), axis=-1),
            unit=step / dimensions**0.5,
            module_sums=levels.sum(1).long().numpy(),
            dimensions=dimensions,
            error=_ERROR_DEVIATIONS * float((weights - step * levels).norm()) / dimensions**0.5,
        )

    def scores(
        self, blocks: UInt8[np.ndarray, "n m w"], scales: UInt8[np.ndarray, "n _"]
    ) -> Float32[np.ndarray, " n"]:
        """Returns the scores of sign rows.

        Args:
            blocks: Stored blocks of the rows, contiguous.
            scales: Their scales, which say which blocks are not zero.
        """
        n = len(blocks)
        distances = np.empty((n, _BITS), dtype=np.int32)
        rows, planes, output = (faiss.swig_ptr(array) for array in (blocks, self.planes, distances))
        faiss.hammings(rows, planes, n, _BITS, self.planes[0].size, output)  # type: ignore[attr-defined]
        products = ((self.dimensions - 2 * distances.astype(np.int64)) << np.arange(_BITS)).sum(1)
        # The bits of a block of zeros are those of a block whose numbers are all negative.
        is_zero = np.unpackbits(scales, axis=-1, count=len(self.module_sums)) == 0
        return ((products + is_zero @ self.module_sums) * self.unit).astype(np.float32)
