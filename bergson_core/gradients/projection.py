"""Random projections that depend on a seed and a name only: the same on every device and in every process.

Legend: o output features, i input features; p, the size of the projection; a × b, the shape of a block, a b ≤ p².

A gradient G [o, i] is projected to L G Rᵀ [a, b] by two matrices, L [a, o] on its left side and R [b, i] on its right.
"""

import hashlib
from collections.abc import Callable
from typing import Final, Literal

import numpy as np
import torch
from jaxtyping import Float64
from torch import Tensor

from bergson_core.schemas.build import Projection

Side = Literal["left", "right"]


def rademacher_matrix(
    seed: int, name: str, side: Side, rows: int, columns: int
) -> Float64[Tensor, "{rows} {columns}"]:
    """Returns a projection P with entries ±1/√rows, so that E[PᵀP] = I and E⟨Pg, Ph⟩ = ⟨g, h⟩.

    The signs are the bits of the counter-based Philox generator, keyed by sha256 of (seed, module name, side). They are
    drawn on the CPU and depend on nothing else.

    Args:
        seed: The seed of all projections of an index.
        name: The name of the module.
        side: The side of the gradient that P is for.
        rows: p.
        columns: o on the left side, i on the right.

    Source: Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC'11.
    """
    words = _random_words(seed, name, side, -(-rows * columns // 64)).astype("<u8")
    bits = np.unpackbits(words.view(np.uint8), bitorder="little")[: rows * columns]
    signs = torch.from_numpy(bits).to(torch.float64).mul_(2).sub_(1)
    return signs.div_(rows**0.5).reshape(rows, columns)


def normal_matrix(
    seed: int, name: str, side: Side, rows: int, columns: int
) -> Float64[Tensor, "{rows} {columns}"]:
    """Returns a projection P with entries from N(0, 1/rows), so that E[PᵀP] = I.

    The entries are made of pairs of words of the generator that `rademacher_matrix` uses, by the transform of Box and
    Muller: NumPy's own normal numbers may change from release to release.

    Args:
        seed: The seed of all projections of an index.
        name: The name of the module.
        side: The side of the gradient that P is for.
        rows: p.
        columns: o on the left side, i on the right.

    Source: Box and Muller, "A note on the generation of random normal deviates", 1958.
    """
    pairs = -(-rows * columns // 2)
    words = _random_words(seed, name, side, 2 * pairs).reshape(pairs, 2)
    uniform = ((words >> np.uint64(11)) + 0.5) * 2.0**-53
    radius, angle = np.sqrt(-2 * np.log(uniform[:, 0])), 2 * np.pi * uniform[:, 1]
    entries = np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=1).reshape(-1)
    return torch.from_numpy(entries[: rows * columns]).div_(rows**0.5).reshape(rows, columns)


def orthogonal_matrix(
    seed: int, name: str, side: Side, rows: int, columns: int
) -> Float64[Tensor, "{rows} {columns}"]:
    """Returns a projection P with orthogonal rows of length √(columns/rows), so that E[PᵀP] = I.

    P takes random rows of the orthonormal discrete cosine transform of a vector whose entries have random signs. What
    it keeps of a vector is never counted twice, as it is by rows that are drawn independently: the error of an inner
    product is smaller by the share of the dimensions that are kept, and there is none where rows = columns. With more
    rows than columns, P keeps lengths exactly: it takes random columns of the transform instead.

    Args:
        seed: The seed of all projections of an index.
        name: The name of the module.
        side: The side of the gradient that P is for.
        rows: Dimensions that are kept.
        columns: o on the left side, i on the right.

    Source: Halko, Martinsson and Tropp, "Finding structure with randomness", 2011, section 4.6.
    """
    size = max(rows, columns)
    words = _random_words(seed, name, side, size + columns)
    chosen = np.argsort(words[:size], kind="stable")
    frequencies, times = chosen[: min(rows, size)], np.arange(columns)
    if rows > columns:
        frequencies, times = np.arange(rows), chosen[:columns]
    # The angles are multiples of π / 2 size. Reducing the multiple first keeps the cosines of large matrices exact.
    multiples = np.outer(frequencies, 2 * times + 1) % (4 * size)
    entries = np.cos(np.pi / (2 * size) * multiples) * (2 / size) ** 0.5
    entries[frequencies == 0] *= 0.5**0.5
    signs = 1.0 - 2.0 * (words[size:] >> np.uint64(63))
    return torch.from_numpy(entries * signs * max(1.0, columns / rows) ** 0.5)


def block_shape(projection: Projection, p: int, out_features: int, in_features: int) -> tuple[int, int]:
    """Returns the shape (a, b) of a block, which has a b ≤ p² numbers.

    It is (p, p), except that an orthogonal projection keeps a side whole that is shorter than p, such as that of a
    LoRA adapter, and the other side gets the numbers that are left.

    Args:
        projection: The kind of the projections.
        p: The size of the projection.
        out_features: o, the length of the left side.
        in_features: i, the length of the right side, the bias included.
    """
    if projection != "orthogonal":
        return p, p
    if out_features <= in_features:
        left = min(p, out_features)
        return left, min(p * p // left, in_features)
    right = min(p, in_features)
    return min(p * p // right, out_features), right


def _random_words(seed: int, name: str, side: Side, count: int) -> np.ndarray:
    """Returns `count` random words of 64 bits."""
    digest = hashlib.sha256(f"{seed}\0{name}\0{side}".encode()).digest()
    return np.random.Philox(key=int.from_bytes(digest[:16], "little")).random_raw(count)


PROJECTIONS: Final[dict[Projection, Callable[[int, str, Side, int, int], Tensor]]] = {
    "rademacher": rademacher_matrix,
    "normal": normal_matrix,
    "orthogonal": orthogonal_matrix,
}
