"""Counts, for each row, the signs that agree with a query among some dimensions, where bits are stored by dimension.

Bits are uint64 [dimensions, words]: word j of a dimension has the bits of 64 rows. The words of 16 dimensions at a time
are added to counters that are stored as bit planes, one bit of each row's count a plane, by full adders of three bits
(Harley and Seal): some five instructions for each dimension and 512 rows, where the processor has such wide registers.

`numba` compiles the kernel. It is not among the dependencies: `pip install numba`.
"""

from collections.abc import Callable

import numpy as np

GROUP = 16
"""Dimensions that are added at once; their number has to be a multiple of this."""
PLANES = 13
"""Bits of a count."""

CountAgreeing = Callable[[np.ndarray, np.ndarray, np.ndarray, np.ndarray], None]
"""Arguments: bits [dimensions, words] uint64, numbers of the dimensions [k], for each of them the word [k] that its
words are combined with by exclusive or (all ones where the query is not positive, else 0), and the counts [64 · words]
int16 to write."""


def compile_counter(words: int) -> CountAgreeing:
    """Returns the compiled kernel for blocks of 64 · `words` rows.

    The number of words is a constant of the kernel: only then does the compiler know that no two parts of the scratch
    memory overlap, and use vector registers.
    """
    import numba  # pyright: ignore[reportMissingImports]

    scratch_words = (PLANES + GROUP) * words
    spread = np.array([sum((byte >> k & 1) << 8 * k for k in range(8)) for byte in range(256)], np.uint64)

    add_groups = _compile_adder(words)

    @numba.njit(nogil=True)
    def count_agreeing(bits, dimensions, flips, counts):
        scratch = np.zeros(scratch_words, np.uint64)
        add_groups(bits, dimensions, flips, scratch)
        plane_bytes = scratch.view(np.uint8)
        for j in range(8 * words):
            low, high = np.uint64(0), np.uint64(0)
            for plane in range(8):
                low |= spread[plane_bytes[8 * words * plane + j]] << np.uint64(plane)
            for plane in range(8, PLANES):
                high |= spread[plane_bytes[8 * words * plane + j]] << np.uint64(plane - 8)
            for k in range(8):
                shift, mask = np.uint64(8 * k), np.uint64(255)
                counts[8 * j + k] = np.int16(low >> shift & mask) | np.int16(high >> shift & mask) << 8

    return count_agreeing


def _compile_adder(words: int) -> Callable[[np.ndarray, np.ndarray, np.ndarray, np.ndarray], None]:
    """Returns the compiled function that adds dimensions to the planes at the beginning of the scratch memory."""
    import numba  # pyright: ignore[reportMissingImports]

    inputs = PLANES * words

    @numba.njit(inline="always")
    def add_bits(a, b, c):
        either = a ^ b
        return either ^ c, (a & b) | (either & c)

    @numba.njit(nogil=True)
    def add_groups(bits, dimensions, flips, scratch):
        for start in range(0, len(dimensions), GROUP):
            for k in range(GROUP):
                flip, row = flips[start + k], bits[dimensions[start + k]]
                copied = scratch[inputs + k * words : inputs + (k + 1) * words]
                for j in range(words):
                    copied[j] = row[j] ^ flip
            for j in range(words):
                ones, twos = scratch[j], scratch[words + j]
                fours, eights = scratch[2 * words + j], scratch[3 * words + j]
                eight_a = eight = np.uint64(0)
                for half in range(2):
                    eight_a = eight
                    first = inputs + half * 8 * words + j
                    ones, two_a = add_bits(ones, scratch[first], scratch[first + words])
                    ones, two_b = add_bits(ones, scratch[first + 2 * words], scratch[first + 3 * words])
                    twos, four_a = add_bits(twos, two_a, two_b)
                    ones, two_a = add_bits(ones, scratch[first + 4 * words], scratch[first + 5 * words])
                    ones, two_b = add_bits(ones, scratch[first + 6 * words], scratch[first + 7 * words])
                    twos, four_b = add_bits(twos, two_a, two_b)
                    fours, eight = add_bits(fours, four_a, four_b)
                eights, carry = add_bits(eights, eight_a, eight)
                scratch[j], scratch[words + j] = ones, twos
                scratch[2 * words + j], scratch[3 * words + j] = fours, eights
                for plane in range(4, PLANES):
                    before = scratch[plane * words + j]
                    scratch[plane * words + j] = before ^ carry
                    carry &= before

    return add_groups
