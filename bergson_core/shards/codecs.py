"""How rows are kept: numbers with a scale for each block, or one bit a number.

Legend: n rows, m layers, d numbers a layer, w entries kept of them.

A codec turns rows [n, m, d] into `blocks` [n, m, w] and `scales` [n, .], and back. A block of zeros comes back as
zeros under each of them.
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
"""[256, 8]: ±1 for each bit of each value of a byte."""


class Codec(ABC):
    """One way to keep rows."""

    block_type: np.dtype
    scale_type: np.dtype

    @abstractmethod
    def entries(self, width: int) -> int:
        """w: entries of a block of `width` numbers."""

    @abstractmethod
    def scales(self, layers: int) -> int:
        """Entries of the scales of a row of so many layers."""

    @abstractmethod
    def encode(self, rows: Float[Tensor, "n m d"]) -> tuple[Tensor, Tensor]:
        """(blocks [n, m, w], scales), on the device of `rows`, of the codec's types."""

    @abstractmethod
    def decode(self, blocks: np.ndarray, scales: np.ndarray, width: int) -> Float32[Tensor, "n m d"]:
        """Rows [n, m, width] from what `encode` gave; these may be read-only maps."""

    def products(
        self, blocks: np.ndarray, scales: np.ndarray, weights: Float32[Tensor, "m d"]
    ) -> Float32[Tensor, "n m"]:
        """Inner product of each block of these rows, which may be written to, with its layer's weights."""
        # Not as a matrix product, whose rounding depends on what other rows there are.
        return (self.decode(blocks, scales, weights.shape[1]) * weights).sum(2)

    def row_bytes(self, layers: int, width: int) -> int:
        """Bytes of a row of so many layers of `width` numbers."""
        blocks = layers * self.entries(width) * self.block_type.itemsize
        return blocks + self.scales(layers) * self.scale_type.itemsize


@final
class ScaledCodec(Codec):
    """Each block divided by its largest magnitude, so that nothing overflows or vanishes; the scale is [n, m] float32.

    `steps` is what the largest magnitude becomes: 1 in float16, 127 in int8.
    """

    scale_type = np.dtype(np.float32)

    def __init__(self, dtype: torch.dtype, steps: int) -> None:
        self._dtype, self._steps = dtype, steps
        self.block_type = torch.empty(0, dtype=dtype).numpy().dtype

    def entries(self, width: int) -> int:
        return width

    def scales(self, layers: int) -> int:
        return layers

    def encode(self, rows: Float[Tensor, "n m d"]) -> tuple[Tensor, Tensor]:
        largest = rows.abs().amax(dim=-1)
        unit = rows / largest.clamp_min(torch.finfo(largest.dtype).tiny)[..., None] * self._steps
        kept = unit if self._dtype.is_floating_point else unit.round()
        return kept.to(self._dtype), (largest / self._steps).float()

    def decode(self, blocks: np.ndarray, scales: np.ndarray, width: int) -> Float32[Tensor, "n m d"]:
        # np.array copies what may be a read-only map; torch widens float16 some twenty times faster than NumPy.
        return torch.from_numpy(np.array(blocks)).float() * torch.from_numpy(np.array(scales))[..., None]


@final
class SignCodec(Codec):
    """The sign of each number, packed [n, m, ⌈d/8⌉]; the scales [n, ⌈m/8⌉] are bits too: which blocks are not zero.

    Rows come back as ±1/√(m·d), of unit length: what a query is multiplied with. Padding bits are 0.
    """

    block_type = scale_type = np.dtype(np.uint8)

    def entries(self, width: int) -> int:
        return -(-width // 8)

    def scales(self, layers: int) -> int:
        return -(-layers // 8)

    def encode(self, rows: Float[Tensor, "n m d"]) -> tuple[UInt8[Tensor, "n m w"], UInt8[Tensor, "n _"]]:
        return _packed(rows > 0), _packed((rows != 0).any(-1))

    def decode(self, blocks: np.ndarray, scales: np.ndarray, width: int) -> Float32[Tensor, "n m d"]:
        layers = blocks.shape[1]
        positive = torch.from_numpy(np.unpackbits(blocks, axis=-1, count=width))
        seen = torch.from_numpy(np.unpackbits(scales, axis=-1, count=layers))
        return positive.float().mul_(2).sub_(1) * (seen.float() / (layers * width) ** 0.5)[..., None]

    def products(
        self, blocks: np.ndarray, scales: np.ndarray, weights: Float32[Tensor, "m d"]
    ) -> Float32[Tensor, "n m"]:
        # What each value of each byte adds to the product is a table: a row is 1/8 as many look-ups as numbers.
        layers, width = weights.shape
        padded = F.pad(weights, (0, -width % 8)).reshape(-1, 8)
        table = padded @ _SIGNS_OF_BYTES.mT
        entries = 256 * torch.arange(len(table), dtype=torch.int32) + torch.from_numpy(blocks).flatten(1)
        sums = F.embedding_bag(entries.reshape(-1, blocks.shape[2]), table.reshape(-1, 1), mode="sum")
        seen = torch.from_numpy(np.unpackbits(scales, axis=-1, count=layers)).float()
        return sums.reshape(len(blocks), layers) * (seen / (layers * width) ** 0.5)


def _packed(bits: Bool[Tensor, "*n d"]) -> UInt8[Tensor, "*n w"]:
    """What NumPy's packbits gives: the first of eight is the highest bit."""
    octets = F.pad(bits, (0, -bits.shape[-1] % 8)).unflatten(-1, (-1, 8)).to(torch.uint8)
    places = 2 ** torch.arange(7, -1, -1, dtype=torch.uint8, device=bits.device)
    return (octets * places).sum(-1, dtype=torch.uint8)


CODECS: Final[dict[RowKind, Codec]] = {
    "float16": ScaledCodec(torch.float16, 1),
    "int8": ScaledCodec(torch.int8, 127),
    "sign": SignCodec(),
}
