"""Random projections that depend on a seed and a name only: the same on every device and in every process.

Legend: o output features, i input features, p projected.

A gradient G [o, i] is projected to L G Rᵀ [p, p] by two matrices, L [p, o] on its left side and R [p, i] on its right.
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


def _random_words(seed: int, name: str, side: Side, count: int) -> np.ndarray:
    """Returns `count` random words of 64 bits."""
    digest = hashlib.sha256(f"{seed}\0{name}\0{side}".encode()).digest()
    return np.random.Philox(key=int.from_bytes(digest[:16], "little")).random_raw(count)


PROJECTIONS: Final[dict[Projection, Callable[[int, str, Side, int, int], Tensor]]] = {
    "rademacher": rademacher_matrix,
    "normal": normal_matrix,
}
