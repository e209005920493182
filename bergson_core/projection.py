"""Deterministic random projections, the same on every device and in every process.

Legend: o output features, i input features, p projected.
"""

import hashlib
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float64
from torch import Tensor

Side = Literal["left", "right"]


def rademacher(
    seed: int, name: str, side: Side, rows: int, columns: int
) -> Float64[Tensor, "{rows} {columns}"]:
    """P [rows, columns] float64 of ±1/√rows, so that E[PᵀP] = I and E⟨Pg, Ph⟩ = ⟨g, h⟩.

    The signs are the bits of the counter-based Philox generator (Salmon et al., SC'11) keyed by sha256 of
    (seed, module name, side): drawn on the CPU, they depend on nothing else.
    """
    digest = hashlib.sha256(f"{seed}\0{name}\0{side}".encode()).digest()
    generator = np.random.Philox(key=int.from_bytes(digest[:16], "little"))
    words = generator.random_raw(-(-rows * columns // 64)).astype("<u8")
    bits = np.unpackbits(words.view(np.uint8), bitorder="little")[: rows * columns]
    signs = torch.from_numpy(bits).to(torch.float64).mul_(2).sub_(1)
    return signs.div_(rows**0.5).reshape(rows, columns)
