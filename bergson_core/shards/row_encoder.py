"""What makes the rows of an index, as they are to be kept."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from bergson_core.data.batching import Batch
from bergson_core.gradients.preconditioner import Preconditioner
from bergson_core.gradients.processor import GradientProcessor
from bergson_core.gradients.row_collector import RowCollector
from bergson_core.models.loading import LanguageModel
from bergson_core.schemas.build import BuildSpec, RowKind
from bergson_core.shards.shard import RowShape
from bergson_core.storage.layout import preconditioner_path


@dataclass(frozen=True)
class RowEncoder:
    """A collector and how its rows are kept; `before` is the preconditioner that goes before signs are taken."""

    collector: RowCollector
    kind: RowKind
    preconditioner: Preconditioner | None = None

    @property
    def shape(self) -> RowShape:
        layers = len(self.collector.slices)
        return RowShape(self.kind, layers, self.collector.dimensions // layers)

    def encode(self, batch: Batch) -> tuple[Float[Tensor, "n m d"], Float[Tensor, " n"]]:
        """(rows [n, m, d], losses [n]) as `kept` has them."""
        return self.finish(*self.collector.collect(batch))

    def finish(
        self, rows: Float[Tensor, "n D"], losses: Float[Tensor, " n"]
    ) -> tuple[Float[Tensor, "n m d"], Float[Tensor, " n"]]:
        """(rows [n, m, d], losses [n]); a row with a number that is not finite is 0, and its loss NaN."""
        finite = rows.isfinite().all(1) & losses.isfinite()
        rows, losses = rows.masked_fill(~finite[:, None], 0), losses.masked_fill(~finite, torch.nan)
        blocks = rows.reshape(len(rows), self.shape.modules, self.shape.width)
        return (blocks if self.preconditioner is None else self.preconditioner.apply(blocks)), losses


def has_preconditioned_signs(spec: BuildSpec) -> bool:
    """C^-½ goes before the signs are taken, so that it has to be known by then."""
    return spec.gradients.rows == "sign" and spec.scoring.preconditioner


def open_row_encoder(
    spec: BuildSpec,
    output: Path,
    model: LanguageModel,
    make_collector: Callable[[LanguageModel, GradientProcessor], RowCollector] | None = None,
) -> RowEncoder:
    """What makes rows as the index at `output` has them, from its saved statistics."""
    processor = GradientProcessor.load(output / "statistics")
    made, before = make_collector or partial(RowCollector, modules=spec.gradients.modules), None
    if has_preconditioned_signs(spec):
        before = Preconditioner.load(preconditioner_path(output), model.device)
    return RowEncoder(made(model, processor), spec.gradients.rows, before)
