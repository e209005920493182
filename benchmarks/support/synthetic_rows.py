"""Rows that are clustered as the gradients of a corpus are, by the million, without a model.

Legend: n rows, m modules, d numbers of a module.

A corpus repeats itself: rows come in families (a statement in several wordings), and families in topics. The numbers of
a module's block fall off by a power law. Blocks differ in size, and so do rows, each by a random factor of its own,
since a few modules and a few documents have most of the gradient. A row is the weighted sum of what it shares with its
topic, what it shares with its family, and what it has for itself. The weights below give the row nearest to a query a
cosine of about 0.33, the tenth nearest 0.31, the hundredth 0.10, and all rows together 0.00 ± 0.02 (8,192 numbers).
"""

from dataclasses import dataclass
from typing import Final

import torch
from jaxtyping import Float
from torch import Tensor

_TOPIC_WEIGHT: Final = 0.35
_FAMILY_WEIGHT: Final = 0.55
_OWN_WEIGHT: Final = 0.75
_QUERY_OWN_WEIGHT: Final = 1.2
"""Weight of what a query has for itself, in the place of `_OWN_WEIGHT`."""
_FAMILY_ROWS: Final = 20
_TOPIC_FAMILIES: Final = 20
_DECAY_EXPONENT: Final = 0.25


@dataclass(frozen=True)
class SyntheticRows:
    """Random rows, which are the same for the same arguments.

    Attributes:
        count: Number of rows, n.
        modules: Number of modules, m.
        width: Numbers of a module's block, d.
    """

    count: int
    modules: int
    width: int

    def rows(self, numbers: range) -> Float[Tensor, "n m d"]:
        """Returns the rows with these numbers."""
        generator = torch.Generator().manual_seed(1 + numbers.start)
        families = torch.randint(self._families, (len(numbers),), generator=generator)
        return self._draw(families, _OWN_WEIGHT, generator)

    def query_rows(self, count: int) -> Float[Tensor, "n m d"]:
        """Returns rows of documents outside the corpus, farther from the centres of their families than `rows`."""
        generator = torch.Generator().manual_seed(0)
        families = torch.randint(self._families, (count,), generator=generator)
        return self._draw(families, _QUERY_OWN_WEIGHT, generator)

    @property
    def _families(self) -> int:
        return max(1, self.count // _FAMILY_ROWS)

    def _draw(self, families: Tensor, own_weight: float, generator: torch.Generator) -> Tensor:
        shape = (len(families), self.modules, self.width)
        rows = own_weight * torch.randn(shape, generator=generator)
        for row, family in zip(rows, families.tolist(), strict=True):
            row += _FAMILY_WEIGHT * self._centre(2 * family)
            row += _TOPIC_WEIGHT * self._centre(2 * (family // _TOPIC_FAMILIES) + 1)
        rows *= torch.arange(1, self.width + 1).pow(-_DECAY_EXPONENT)
        block_sizes = torch.randn(len(rows), self.modules, 1, generator=generator).exp()
        return rows * block_sizes * torch.randn(len(rows), 1, 1, generator=generator).exp()

    def _centre(self, seed: int) -> Float[Tensor, "m d"]:
        """Returns what the rows of a family (even seeds) or of a topic (odd seeds) have in common."""
        generator = torch.Generator().manual_seed(2**32 + seed)
        return torch.randn(self.modules, self.width, generator=generator)
