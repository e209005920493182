"""What makes the rows of an index, as they are to be kept."""

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from bergson_core.batching import Batch
from bergson_core.collect import RowCollector
from bergson_core.preconditioners import Preconditioner
from bergson_core.specs import RowKind
from bergson_core.store import RowShape


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
        """(rows [n, m, d], losses [n])."""
        rows, losses = self.collector.collect(batch)
        blocks = rows.reshape(len(batch), self.shape.layers, self.shape.width)
        return (blocks if self.before is None else self.before.apply(blocks)), losses
