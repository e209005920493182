"""Deterministic random projections, the same on every device and in every process.

Legend: o output features, i input features, p projected.
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
    """P [rows, columns] float64 of ±1/√rows, so that E[PᵀP] = I and E⟨Pg, Ph⟩ = ⟨g, h⟩.

    The signs are the bits of the counter-based Philox generator (Salmon et al., SC'11) keyed by sha256 of
    (seed, module name, side): drawn on the CPU, they depend on nothing else.
    """
    words = _words(seed, name, side, -(-rows * columns // 64)).astype("<u8")
    bits = np.unpackbits(words.view(np.uint8), bitorder="little")[: rows * columns]
    signs = torch.from_numpy(bits).to(torch.float64).mul_(2).sub_(1)
    return signs.div_(rows**0.5).reshape(rows, columns)


def normal_matrix(
    seed: int, name: str, side: Side, rows: int, columns: int
) -> Float64[Tensor, "{rows} {columns}"]:
    """P [rows, columns] float64 with entries of N(0, 1/rows), so that E[PᵀP] = I.

    Pairs of words of the same generator, by the transform of Box and Muller (1958): NumPy's own normal numbers may
    change from release to release.
    """
    pairs = -(-rows * columns // 2)
    words = _words(seed, name, side, 2 * pairs).reshape(pairs, 2)
    uniform = ((words >> np.uint64(11)) + 0.5) * 2.0**-53
    radius, angle = np.sqrt(-2 * np.log(uniform[:, 0])), 2 * np.pi * uniform[:, 1]
    entries = np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=1).reshape(-1)
    return torch.from_numpy(entries[: rows * columns]).div_(rows**0.5).reshape(rows, columns)


def _words(seed: int, name: str, side: Side, count: int) -> np.ndarray:
    digest = hashlib.sha256(f"{seed}\0{name}\0{side}".encode()).digest()
    return np.random.Philox(key=int.from_bytes(digest[:16], "little")).random_raw(count)


PROJECTIONS: Final[dict[Projection, Callable[[int, str, Side, int, int], Tensor]]] = {
    "rademacher": rademacher_matrix,
    "normal": normal_matrix,
}
