"""Ways to store a block: those of an index, and numbers of 1, 2 or 4 bits with a scale, which only benchmarks have.

Legend: n rows, m modules, d numbers per module.

The numbers of a block are nearly normally distributed, since each is a sum over a random projection. A code of b bits
divides them into 2^b intervals of equal width Δ about 0, and returns the middle of the interval. Δ is the width with
the smallest mean squared error, in units of the block's root mean square, which is stored as float16.

Source of the widths: Max, Quantizing for Minimum Distortion (1960), table II.
"""

from typing import Final, Literal, TypeAlias, cast

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from benchmarks.support.row_variants import store_and_load
from bergson_core.schemas.build import RowKind
from bergson_core.shards.codecs import CODECS

Code: TypeAlias = Literal["float16", "int8", "sign", "bits1", "bits2", "bits4"]
"""How rows are stored. `sign` and `bits1` store the same bits, and `bits1` a scale beside those of each block."""
BITS: Final[dict[Code, int]] = {"bits1": 1, "bits2": 2, "bits4": 4}
INTERVALS: Final = {1: 1.596, 2: 0.9957, 4: 0.3352}
"""Number of bits → Δ."""
_SCALE_BYTES: Final = 2


def store(code: Code, rows: Float[Tensor, "n m d"]) -> Float[Tensor, "n m d"]:
    """Returns rows as they come back from an index that stores them in a code."""
    if (bits := BITS.get(code)) is None:
        return store_and_load(cast(RowKind, code), rows)
    return decode(*encode(rows, bits), bits, rows.shape[2])


def row_bytes(code: Code, modules: int, width: int) -> int:
    """Returns the bytes of a row of `modules` blocks of `width` numbers."""
    if (bits := BITS.get(code)) is None:
        return CODECS[cast(RowKind, code)].row_bytes(modules, width)
    return modules * (-(-width * bits // 8) + _SCALE_BYTES)


def encode(
    rows: Float[Tensor, "n m d"], bits: int
) -> tuple[UInt8[np.ndarray, "n m w"], Float[Tensor, "n m"]]:
    """Returns the packed numbers of the intervals, and the scale of each block."""
    scales = rows.square().mean(2).sqrt().half()
    widths = scales.float().clamp_min(torch.finfo(torch.float32).tiny)[..., None] * INTERVALS[bits]
    numbers = ((rows / widths).floor() + 2 ** (bits - 1)).clamp(0, 2**bits - 1).to(torch.uint8).numpy()
    all_bits = np.unpackbits(numbers[..., None], axis=-1)[..., -bits:]
    return np.packbits(all_bits.reshape(*numbers.shape[:2], -1), axis=-1), scales


def decode(
    packed: UInt8[np.ndarray, "n m w"], scales: Float[Tensor, "n m"], bits: int, width: int
) -> Float[Tensor, "n m d"]:
    """Returns the middles of the intervals of what `encode` returned, for blocks of `width` numbers."""
    all_bits = np.unpackbits(packed, axis=-1, count=width * bits).reshape(*packed.shape[:2], width, bits)
    numbers = np.packbits(all_bits, axis=-1)[..., 0] >> (8 - bits)
    middles = torch.from_numpy(numbers).float() - 2 ** (bits - 1) + 0.5
    return middles * (scales.float() * INTERVALS[bits])[..., None]
