"""Ways to store a block: those of an index, and numbers of two bits with a scale, which only benchmarks have.

Legend: n rows, m modules, d numbers per module.

The numbers of a block are nearly normally distributed, since each is a sum over a random projection. The code divides
them into four intervals of equal width Δ about 0, and returns the middle of the interval. Δ is the width with the
smallest mean squared error, in units of the block's root mean square, which is stored as float16.

Source of Δ: Max, Quantizing for Minimum Distortion (1960), table II.
"""

from typing import Final, Literal, TypeAlias

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from benchmarks.support.row_variants import store_and_load
from bergson_core.schemas.build import RowKind
from bergson_core.shards.codecs import CODECS

Code: TypeAlias = RowKind | Literal["bits2"]
"""How rows are stored."""
INTERVAL: Final = 0.9957
"""Δ."""
_SCALE_BYTES: Final = 2


def store(code: Code, rows: Float[Tensor, "n m d"]) -> Float[Tensor, "n m d"]:
    """Returns rows as they come back from an index that stores them in a code."""
    if code != "bits2":
        return store_and_load(code, rows)
    return decode(*encode(rows), rows.shape[2])


def row_bytes(code: Code, modules: int, width: int) -> int:
    """Returns the bytes of a row of `modules` blocks of `width` numbers."""
    if code != "bits2":
        return CODECS[code].row_bytes(modules, width)
    return modules * (-(-width // 4) + _SCALE_BYTES)


def encode(rows: Float[Tensor, "n m d"]) -> tuple[UInt8[np.ndarray, "n m w"], Float[Tensor, "n m"]]:
    """Returns the packed numbers of the intervals, and the scale of each block."""
    scales = rows.square().mean(2).sqrt().half()
    widths = scales.float().clamp_min(torch.finfo(torch.float32).tiny)[..., None] * INTERVAL
    numbers = ((rows / widths).floor() + 2).clamp(0, 3).to(torch.uint8).numpy()
    bits = np.unpackbits(numbers[..., None], axis=-1)[..., -2:]
    return np.packbits(bits.reshape(*numbers.shape[:2], -1), axis=-1), scales


def decode(
    packed: UInt8[np.ndarray, "n m w"], scales: Float[Tensor, "n m"], width: int
) -> Float[Tensor, "n m d"]:
    """Returns the middles of the intervals of what `encode` returned, for blocks of `width` numbers."""
    bits = np.unpackbits(packed, axis=-1, count=2 * width).reshape(*packed.shape[:2], width, 2)
    numbers = np.packbits(bits, axis=-1)[..., 0] >> 6
    middles = torch.from_numpy(numbers).float() - 1.5
    return middles * (scales.float() * INTERVAL)[..., None]
