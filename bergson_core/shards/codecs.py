"""How a row is stored: as numbers with one scale per block, or as one bit per number.

Legend: n rows, m modules, d numbers per module, w entries that are stored of a block of d numbers.

A codec turns rows [n, m, d] into `blocks` [n, m, w] and `scales` [n, .], and back. A block of zeros comes back as
zeros from every codec.
"""

from abc import ABC, abstractmethod
from typing import Final, final

import numpy as np
import torch
from jaxtyping import Bool, Float, Float32, UInt8
from torch import Tensor
from torch.nn import functional as F

from bergson_core.schemas.build import RowKind

_SIGNS_OF_BYTES: Final = (
    torch.from_numpy(np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1)).float() * 2 - 1
)
"""[256, 8]: for each value of a byte, +1 for each bit that is set and -1 for each other, the highest bit first."""
_CACHED_NUMBERS: Final = 2**18
"""Numbers that are decoded together for their products with a query: 1 MiB."""


class Codec(ABC):
    """One way to store rows.

    Attributes:
        block_dtype: The type of the entries of `blocks`.
        scale_dtype: The type of the entries of `scales`.
    """

    block_dtype: np.dtype
    scale_dtype: np.dtype

    @abstractmethod
    def block_entries(self, width: int) -> int:
        """Returns w, the number of entries that are stored of a block of `width` numbers."""

    @abstractmethod
    def scale_entries(self, modules: int) -> int:
        """Returns how many entries the scales of a row have whose blocks belong to `modules` modules."""

    @abstractmethod
    def encode(self, rows: Float[Tensor, "n m d"]) -> tuple[Tensor, Tensor]:
        """Returns the blocks [n, m, w] and scales [n, .] of `rows`, on the same device, in the codec's types."""

    @abstractmethod
    def decode(self, blocks: np.ndarray, scales: np.ndarray, width: int) -> Float32[Tensor, "n m d"]:
        """Returns the rows that `encode` stored, up to the codec's rounding.

        Args:
            blocks: Stored blocks [n, m, w]; a read-only memory map is accepted.
            scales: Their scales [n, .]; a read-only memory map is accepted.
            width: d, the numbers of a block.
        """

    def block_products(
        self, blocks: np.ndarray, scales: np.ndarray, weights: Float32[Tensor, "m d"]
    ) -> Float32[Tensor, "n m"]:
        """Returns the inner product of each block of the stored rows with its module's weights.

        Args:
            blocks: Stored blocks [n, m, w], in memory that may be written to.
            scales: Their scales [n, .].
            weights: What each module's block is multiplied with [m, d].
        """
        # A sum and not a matrix product, whose rounding would depend on which other rows are computed with a row. Few
        # rows are decoded at a time, so that they stay in the processor's cache.
        products = torch.empty(blocks.shape[:2])
        size = max(1, _CACHED_NUMBERS // weights.numel())
        for start in range(0, len(blocks), size):
            chunk = slice(start, start + size)
            rows = self.decode(blocks[chunk], scales[chunk], weights.shape[1])
            torch.sum(rows.mul_(weights), 2, out=products[chunk])
        return products

    def row_bytes(self, modules: int, width: int) -> int:
        """Returns the bytes that a row of `modules` blocks of `width` numbers takes."""
        blocks = modules * self.block_entries(width) * self.block_dtype.itemsize
        return blocks + self.scale_entries(modules) * self.scale_dtype.itemsize


@final
class ScaledCodec(Codec):
    """Stores each block divided by its largest magnitude, so that no number overflows or vanishes.

    The scales are [n, m] float32.

    Args:
        dtype: The type of the stored numbers.
        steps: The value that a block's largest magnitude becomes: 1 in float16, 127 in int8.
    """

    scale_dtype = np.dtype(np.float32)

    def __init__(self, dtype: torch.dtype, steps: int) -> None:
        self._dtype, self._steps = dtype, steps
        self.block_dtype = torch.empty(0, dtype=dtype).numpy().dtype

    def block_entries(self, width: int) -> int:
        return width

    def scale_entries(self, modules: int) -> int:
        return modules

    def encode(self, rows: Float[Tensor, "n m d"]) -> tuple[Tensor, Tensor]:
        largest = rows.abs().amax(dim=-1)
        scaled = rows / largest.clamp_min(torch.finfo(largest.dtype).tiny)[..., None] * self._steps
        blocks = scaled if self._dtype.is_floating_point else scaled.round()
        return blocks.to(self._dtype), (largest / self._steps).float()

    def decode(self, blocks: np.ndarray, scales: np.ndarray, width: int) -> Float32[Tensor, "n m d"]:
        # torch takes no read-only map. It widens float16 some twenty times faster than NumPy.
        numbers, factors = (
            torch.from_numpy(np.require(array, requirements="W")) for array in (blocks, scales)
        )
        return numbers.float().mul_(factors[..., None])


@final
class SignCodec(Codec):
    """Stores the sign of each number in one bit, [n, m, ⌈d/8⌉].

    The scales [n, ⌈m/8⌉] are bits too, which say which blocks are not zero. Decoded rows are ±1/√(m·d): they have unit
    length, as what a query is multiplied with. The bits that pad the last byte are 0.
    """

    block_dtype = scale_dtype = np.dtype(np.uint8)

    def block_entries(self, width: int) -> int:
        return -(-width // 8)

    def scale_entries(self, modules: int) -> int:
        return -(-modules // 8)

    def encode(self, rows: Float[Tensor, "n m d"]) -> tuple[UInt8[Tensor, "n m w"], UInt8[Tensor, "n _"]]:
        return _pack_bits(rows > 0), _pack_bits((rows != 0).any(-1))

    def decode(self, blocks: np.ndarray, scales: np.ndarray, width: int) -> Float32[Tensor, "n m d"]:
        modules = blocks.shape[1]
        positive = torch.from_numpy(np.unpackbits(blocks, axis=-1, count=width))
        nonzero = torch.from_numpy(np.unpackbits(scales, axis=-1, count=modules))
        return positive.float().mul_(2).sub_(1) * (nonzero.float() / (modules * width) ** 0.5)[..., None]

    def block_products(
        self, blocks: np.ndarray, scales: np.ndarray, weights: Float32[Tensor, "m d"]
    ) -> Float32[Tensor, "n m"]:
        # A table holds what each value of each byte adds to the product, so that a row takes one look-up for eight
        # numbers.
        modules, width = weights.shape
        padded = F.pad(weights, (0, -width % 8)).reshape(-1, 8)
        table = padded @ _SIGNS_OF_BYTES.mT
        entries = 256 * torch.arange(len(table), dtype=torch.int32) + torch.from_numpy(blocks).flatten(1)
        sums = F.embedding_bag(entries.reshape(-1, blocks.shape[2]), table.reshape(-1, 1), mode="sum")
        nonzero = torch.from_numpy(np.unpackbits(scales, axis=-1, count=modules)).float()
        return sums.reshape(len(blocks), modules) * (nonzero / (modules * width) ** 0.5)


def _pack_bits(bits: Bool[Tensor, "*n d"]) -> UInt8[Tensor, "*n w"]:
    """Packs bits as NumPy's packbits does: the first of eight is the highest bit of its byte."""
    octets = F.pad(bits, (0, -bits.shape[-1] % 8)).unflatten(-1, (-1, 8)).to(torch.uint8)
    place_values = 2 ** torch.arange(7, -1, -1, dtype=torch.uint8, device=bits.device)
    return (octets * place_values).sum(-1, dtype=torch.uint8)


CODECS: Final[dict[RowKind, Codec]] = {
    "float16": ScaledCodec(torch.float16, 1),
    "int8": ScaledCodec(torch.int8, 127),
    "sign": SignCodec(),
}
