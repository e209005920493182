"""`RowCollector`: the only code that turns documents into rows; the caller decides where the rows go.

Legend: n samples, s positions, m modules, d numbers per module (p² with a projection to p × p), D = Σ d numbers per
row, r rows.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Final

import numpy as np
import torch
from jaxtyping import Float, Float32, Float64
from torch import Tensor

from bergson_core.gradients.collector import GradientCollector
from bergson_core.gradients.processor import GradientProcessor
from bergson_core.models.device_to_host import overlap_copies
from bergson_core.models.forward_backward import forward_backward
from bergson_core.models.hooks import freeze
from bergson_core.models.language_model import LanguageModel
from bergson_core.models.modules import TrackedModule
from bergson_core.tokens.batching import Batch, iter_batches
from bergson_core.tokens.tokenization import Tokens

MAX_TOKEN_ROW_NUMBERS: Final = 2**25
"""Numbers of the rows of tokens that are in memory at a time: 128 MiB in float32."""


class RowCollector:
    """Runs batches through a model and lays out each sample's gradients as one row.

    A row [D] is the modules' gradients in natural order of their names, each flattened. Hooks are on the model during a
    pass only, so that the model may serve others between batches.

    Args:
        model: The model, on its device.
        processor: How gradients are normalized and projected.
        modules: Which modules to track, as in `GradientCollector`, without those that a forward pass never reaches.
            Modules that are named one by one are tracked in any case, and those that are not reached have zeros.
        per_token: Whether to make a row for each position instead of one for each sample.
        share_with: A collector of the same model and processor whose projections this one uses too.

    Attributes:
        modules: The tracked modules, by name, in the order in which a row has them.
        slices: Where in a row each module's numbers are, by the module's name.
        dimensions: D.
    """

    def __init__(
        self,
        model: LanguageModel,
        processor: GradientProcessor,
        modules: str | Iterable[str] | None = None,
        *,
        per_token: bool = False,
        share_with: "RowCollector | None" = None,
    ) -> None:
        if modules is None or isinstance(modules, str):
            modules = model.select_modules(
                modules, split_heads=processor.split_heads, include_bias=processor.include_bias
            )
        self._collector = GradientCollector(
            model.model,
            processor,
            self._add_to_rows,
            modules,
            per_token=per_token,
            share_with=share_with and share_with._collector,
        )
        self.modules = self._collector.modules
        self._model = model.for_tracking(self.modules.values())
        self.slices = module_slices(self.modules, processor)
        self.dimensions = sum(part.stop - part.start for part in self.slices.values())
        self._rows = torch.empty(0)

    def collect(self, batch: Batch) -> tuple[Float[Tensor, "n *s D"], Float[Tensor, " n"]]:
        """Runs one forward and backward pass.

        Returns:
            The rows, [n, D] or [n, s, D] per token, and the losses [n] in nats, both in float32, or float64 where the
            model is, on the model's device. Which of the s positions of a document are its tokens is told by
            `batch.token_positions`.
        """
        model, ids = self._model.model, batch.input_ids
        self._collector.sequences_per_sample = batch.sequences_per_document
        wide = torch.promote_types(self._model.dtype, torch.float32)
        shape = (len(batch), batch.positions) if self._collector.per_token else (len(batch),)
        self._rows = torch.zeros(*shape, self.dimensions, dtype=wide, device=ids.device)
        with freeze(model), self._collector:
            losses = forward_backward(self._model, batch)
        rows, self._rows = self._rows, torch.empty(0)
        return rows, losses.to(rows.device)

    @property
    def model(self) -> LanguageModel:
        """The model, without its split into backbone and head where a tracked module is in the head."""
        return self._model

    @property
    def device(self) -> torch.device:
        """The model's device."""
        return self._model.device

    @property
    def per_token(self) -> bool:
        """Whether there is a row for each position instead of one for each sample."""
        return self._collector.per_token

    def _add_to_rows(self, name: str, gradient: Tensor) -> None:
        self._rows[..., self.slices[name]] += gradient.flatten(-2).to(self._rows.device)


def module_slices(modules: Mapping[str, TrackedModule], processor: GradientProcessor) -> dict[str, slice]:
    """Returns where in a row each module's numbers are, by name, in the order of `modules`."""
    slices, start = {}, 0
    for name, tracked in modules.items():
        bias = processor.include_bias and tracked.has_bias
        whole = tracked.out_features * (tracked.in_features + bias)
        size = whole if processor.projection_dim is None else processor.projection_dim**2
        slices[name] = slice(start, start + size)
        start += size
    return slices


def collect_rows(
    collector: RowCollector,
    documents: Sequence[Tokens],
    budget_tokens: int,
    tick: Callable[[], object] = lambda: None,
) -> tuple[Float32[np.ndarray, "r D"], Float64[np.ndarray, " n"]]:
    """Returns the rows and losses of documents, in the documents' order, in the host's memory.

    Args:
        collector: Runs the model.
        documents: The n tokenised documents.
        budget_tokens: The most tokens of a batch, padding included.
        tick: Called after each batch; it may raise to stop.

    Returns:
        The rows [r, D] float32 and the losses [n] float64 in nats. There is one row for each document, or, where the
        collector is per token, one for each token of each document, in order.
    """
    row_counts = [len(tokens.ids) if collector.per_token else 1 for tokens in documents]
    first_rows = np.cumsum([0, *row_counts])
    rows = np.zeros((first_rows[-1], collector.dimensions), dtype=np.float32)
    losses = np.zeros(len(documents))
    batches = iter_batches(documents, budget_tokens, collector.device)
    collected = ((batch, *collector.collect(batch)) for batch in batches)
    for batch, batch_rows, batch_losses in overlap_copies(collected):
        indices = batch.indices
        losses[indices] = batch_losses
        tick()
        if not collector.per_token:
            rows[indices] = batch_rows
            continue
        for number, (index, token_rows) in enumerate(zip(indices, batch_rows, strict=True)):
            start, stop = first_rows[index], first_rows[index + 1]
            rows[start:stop] = token_rows[batch.token_positions(number).numpy()]
    return rows, losses
