"""Rows that are clustered as gradients of a corpus are, by the million, without a model.

Legend: n rows, m layers, d numbers a layer.

A corpus says things again and again: rows come in families (a statement in several wordings) and families in topics.
Numbers of a block fall off by a power law, blocks differ in size, and so do rows, each by its own random factor, since
a few layers and a few documents have most of a gradient. What a row shares with its topic, with its family, and has
for itself is weighed as below: the nearest row of a question has a cosine of about 0.33, the tenth nearest of 0.31, the
hundredth of 0.10, and all together of 0.00 ± 0.02 (8,192 numbers).
"""

from dataclasses import dataclass
from typing import Final

import torch
from jaxtyping import Float
from torch import Tensor

TOPIC, FAMILY, OWN, ASKED = 0.35, 0.55, 0.75, 1.2
"""Weights of the parts of a row, the last of what a question has for itself."""
_FAMILY_ROWS: Final = 20
_TOPIC_FAMILIES: Final = 20
_FALLS_OFF: Final = 0.25


@dataclass(frozen=True)
class MadeRows:
    """`count` rows of `layers` blocks of `width` numbers; the same ones for the same arguments."""

    count: int
    layers: int
    width: int

    def rows(self, numbers: range) -> Float[Tensor, "n m d"]:
        """The rows of these numbers."""
        draw = torch.Generator().manual_seed(1 + numbers.start)
        families = torch.randint(self._families, (len(numbers),), generator=draw)
        return self._of(families, OWN, draw)

    def questions(self, count: int) -> Float[Tensor, "n m d"]:
        """Rows of other documents, farther from the centre of their families than those of the corpus."""
        draw = torch.Generator().manual_seed(0)
        return self._of(torch.randint(self._families, (count,), generator=draw), ASKED, draw)

    @property
    def _families(self) -> int:
        return max(1, self.count // _FAMILY_ROWS)

    def _of(self, families: Tensor, own: float, draw: torch.Generator) -> Tensor:
        shape = (len(families), self.layers, self.width)
        rows = own * torch.randn(shape, generator=draw)
        for one, family in enumerate(families.tolist()):
            rows[one] += FAMILY * self._centre(2 * family)
            rows[one] += TOPIC * self._centre(2 * (family // _TOPIC_FAMILIES) + 1)
        rows *= torch.arange(1, self.width + 1).pow(-_FALLS_OFF)
        blocks = torch.randn(len(rows), self.layers, 1, generator=draw)
        return rows * blocks.exp() * torch.randn(len(rows), 1, 1, generator=draw).exp()

    def _centre(self, seed: int) -> Tensor:
        """What a family or a topic has in common."""
        draw = torch.Generator().manual_seed(2**32 + seed)
        return torch.randn(self.layers, self.width, generator=draw)
