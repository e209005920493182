"""What makes the rows of an index, as they are to be kept."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from bergson_core.data.batching import Batch
from bergson_core.gradients.preconditioner import Preconditioner
from bergson_core.gradients.row_collector import RowCollector
from bergson_core.schemas.specs import RowKind
from bergson_core.shards.shard import RowShape


@dataclass(frozen=True)
class RowMaker:
    """A collector and how its rows are kept; `before` is the preconditioner that goes before signs are taken."""

    collector: RowCollector
    kind: RowKind
    before: Preconditioner | None = None

    @property
    def shape(self) -> RowShape:
        layers = len(self.collector.slices)
        return RowShape(self.kind, layers, self.collector.dimensions // layers)

    def blocks(self, batch: Batch) -> tuple[Float[Tensor, "n m d"], Float[Tensor, " n"]]:
        """(rows [n, m, d], losses [n]) as `kept` has them."""
        return self.kept(*self.collector.collect(batch))

    def kept(
        self, rows: Float[Tensor, "n D"], losses: Float[Tensor, " n"]
    ) -> tuple[Float[Tensor, "n m d"], Float[Tensor, " n"]]:
        """(rows [n, m, d], losses [n]); a row with a number that is not finite is 0, and its loss NaN."""
        finite = rows.isfinite().all(1) & losses.isfinite()
        rows, losses = rows.masked_fill(~finite[:, None], 0), losses.masked_fill(~finite, torch.nan)
        blocks = rows.reshape(len(rows), self.shape.layers, self.shape.width)
        return (blocks if self.before is None else self.before.apply(blocks)), losses
