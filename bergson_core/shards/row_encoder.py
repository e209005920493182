"""Turns batches of documents into the rows of an index, up to the point where a codec stores them.

Legend: n samples, m modules, d numbers per module, D = m·d.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from bergson_core.gradients.checkpoints.collector import open_row_collector
from bergson_core.gradients.preconditioner import Preconditioner
from bergson_core.gradients.processor import GradientProcessor
from bergson_core.gradients.row_collector import RowCollector
from bergson_core.models.language_model import LanguageModel
from bergson_core.schemas.build import BuildSpec, RowKind
from bergson_core.shards.shard import RowShape
from bergson_core.storage.layout import preconditioner_path
from bergson_core.tokens.batching import Batch


@dataclass(frozen=True)
class RowEncoder:
    """Encodes documents as rows of an index.

    Attributes:
        collector: Runs the model and collects the projected gradients.
        kind: How the rows will be stored.
        preconditioner: What rows are multiplied with before their signs are taken; None for other rows, which are
            preconditioned when they are compared.
    """

    collector: RowCollector
    kind: RowKind
    preconditioner: Preconditioner | None = None

    @property
    def shape(self) -> RowShape:
        """The shape of the rows."""
        modules = len(self.collector.slices)
        return RowShape(self.kind, modules, self.collector.dimensions // modules)

    def encode(self, batch: Batch) -> tuple[Float[Tensor, "n m d"], Float[Tensor, " n"]]:
        """Runs the model on a batch and returns its rows and losses, as `finish` returns them."""
        return self.finish(*self.collector.collect(batch))

    def finish(
        self, rows: Float[Tensor, "n D"], losses: Float[Tensor, " n"]
    ) -> tuple[Float[Tensor, "n m d"], Float[Tensor, " n"]]:
        """Divides rows into blocks, and blanks those that are not finite.

        Args:
            rows: Rows [n, D] of the collector.
            losses: Their losses [n], in nats.

        Returns:
            The rows [n, m, d], preconditioned where there is a preconditioner, and their losses [n]. Where a number of
            the row or its loss is not finite, the row is 0 and its loss NaN.
        """
        finite = rows.isfinite().all(1) & losses.isfinite()
        rows, losses = rows.masked_fill(~finite[:, None], 0), losses.masked_fill(~finite, torch.nan)
        blocks = rows.reshape(len(rows), self.shape.modules, self.shape.width)
        return (blocks if self.preconditioner is None else self.preconditioner.apply(blocks)), losses


def has_preconditioned_signs(spec: BuildSpec) -> bool:
    """Returns whether rows are multiplied with C^-½ before their signs are taken.

    C then has to be fitted before the first row is stored.
    """
    return spec.gradients.rows == "sign" and spec.scoring.preconditioner


def open_row_encoder(
    spec: BuildSpec,
    output: Path,
    model: LanguageModel,
    make_collector: Callable[[LanguageModel, GradientProcessor], RowCollector] | None = None,
) -> RowEncoder:
    """Returns the encoder of the rows of an index, from the index's saved statistics.

    Args:
        spec: What the index is built from.
        output: The directory of the index, where the gradient processor is, and for sign rows the preconditioner.
        model: The model of the index.
        make_collector: Makes the collector; by default one of the modules that `spec` names (`open_row_collector`).
    """
    processor = GradientProcessor.load(output / "statistics")
    make_collector = make_collector or partial(open_row_collector, modules=spec.gradients.modules)
    preconditioner = None
    if has_preconditioned_signs(spec):
        preconditioner = Preconditioner.load(preconditioner_path(output), model.device)
    return RowEncoder(make_collector(model, processor), spec.gradients.rows, preconditioner)
