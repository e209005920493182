"""The only loop over documents that makes rows; where they go is the caller's business.

Legend: n samples, s positions, m layers, d numbers a layer (p² where projected), D = Σ d numbers a row.
"""

import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa
import torch
from datasets import Dataset, concatenate_datasets
from jaxtyping import Float, Float32, Float64
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from bergson_core.data.batching import Batch, Tokens, batches
from bergson_core.data.dataset import iter_token_chunks
from bergson_core.gradients.collector import GradientCollector
from bergson_core.gradients.device_to_host import overlap_copies
from bergson_core.gradients.normalizer_fitting import fit_processor
from bergson_core.gradients.processor import GradientProcessor
from bergson_core.models.batch_budget import find_batch_budget
from bergson_core.models.forward_backward import forward_backward
from bergson_core.models.hooks import freeze
from bergson_core.models.loading import LanguageModel, as_language_model
from bergson_core.models.modules import TrackedModule
from bergson_core.schemas.build import ColumnsSpec, GradientSpec, Loss

MAX_TOKEN_ROW_NUMBERS: Final = 2**25
"""Of token rows in memory: 128 MiB."""


class RowCollector:
    """Runs batches through a model and lays each sample's gradients out as one row.

    A row is the layers' gradients in natural order of their names, each flattened: `slices` says where each
    one is. With `per_token` there is one for each position. Hooks are in place during a pass only, so that the same
    model may serve others between batches. `like` is a collector to share projections with (`GradientCollector`).
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
        self._collector = GradientCollector(
            model.model,
            processor,
            self._arrive,
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
        """(rows [n, D], or [n, s, D] per token, losses [n]) of a batch, float32 or wider, on the model's device."""
        model, ids = self._model.model, batch.input_ids
        wide = torch.promote_types(next(model.parameters()).dtype, torch.float32)
        shape = ids.shape if self._collector.per_token else ids.shape[:1]
        self._rows = torch.zeros(*shape, self.dimensions, dtype=wide, device=ids.device)
        with freeze(model), self._collector:
            losses = forward_backward(self._model, batch)
        rows, self._rows = self._rows, torch.empty(0)
        return rows, losses

    @property
    def model(self) -> LanguageModel:
        return self._model

    @property
    def device(self) -> torch.device:
        return self._model.device

    @property
    def per_token(self) -> bool:
        return self._collector.per_token

    def _arrive(self, name: str, gradient: Tensor) -> None:
        self._rows[..., self.slices[name]] += gradient.flatten(-2)


def module_slices(modules: Mapping[str, TrackedModule], processor: GradientProcessor) -> dict[str, slice]:
    """Where in a row each layer's numbers are, in the order of `layers`."""
    slices, start = {}, 0
    for name, layer in modules.items():
        bias = processor.include_bias and layer.has_bias
        whole = layer.out_features * (layer.in_features + bias)
        size = whole if processor.projection_dim is None else processor.projection_dim**2
        slices[name] = slice(start, start + size)
        start += size
    return slices


def collect_gradients(
    model: nn.Module,
    dataset: Dataset,
    tokenizer: PreTrainedTokenizerBase | None = None,
    processor: GradientProcessor | None = None,
    *,
    prompt_column: str = "text",
    completion_column: str | None = None,
    messages_column: str | None = None,
    weight_column: str | None = None,
    loss: Loss = "sum",
    per_token: bool = False,
    modules: str | Iterable[str] | None = None,
    budget_tokens: int | None = None,
) -> Dataset:
    """`dataset` with two new columns: `gradients` [D] float32, one row a document, and `loss`, in nats.

    A gradient is that of the document's token cross-entropy, summed or the mean; with a completion column, of the
    completion alone; with a messages column, of the assistant's turns; times the number in a weight column. The
    column `loss` is always the plain sum. With `per_token`, `gradients` is [s, D], a row for each token of a document:
    what its position adds to the document's row, which is their sum. Without `tokenizer` the column `input_ids` is
    used, and `labels` where there is one. `processor` defaults to that of `fit_processor`: Adafactor, fitted from a
    sample of `dataset`, and 16 × 16 numbers a layer. Memory does not grow with the dataset. `budget_tokens` is what a
    batch may have, padding included; by default as many as fit into the device's memory.
    Raises `InvalidInput` for a document that is longer than the model takes, or is not text.
    """
    columns = ColumnsSpec(
        prompt=prompt_column, completion=completion_column, messages=messages_column, weight=weight_column
    )
    if processor is None:
        settings = GradientSpec(loss=loss)
        processor = fit_processor(model, dataset, tokenizer, settings, columns=columns, modules=modules)
    language_model = as_language_model(model, tokenizer)
    collector = RowCollector(language_model, processor, modules, per_token=per_token)
    row = pa.list_(pa.float32(), collector.dimensions)
    schema = pa.schema({"gradients": pa.list_(row) if per_token else row, "loss": pa.float64()})
    directory = tempfile.mkdtemp(prefix="bergson-")  # lives as long as the dataset that maps it
    path = str(Path(directory) / "gradients.arrow")
    longest, budget = 0, budget_tokens or 0
    with pa.OSFile(path, "wb") as file, pa.ipc.new_stream(file, schema) as writer:
        for chunk in iter_token_chunks(tokenizer, dataset, columns, language_model.max_tokens, loss):
            if budget_tokens is None and (here := max(len(one.ids) for one in chunk)) > longest:
                longest, budget = here, find_batch_budget(language_model, collector.modules, here)
            if per_token:
                budget = max(1, min(budget, MAX_TOKEN_ROW_NUMBERS // collector.dimensions))
            for tokens in _few(chunk, collector.dimensions) if per_token else [chunk]:
                rows, losses = collect_rows(collector, tokens, budget)
                gradients: Any = pa.FixedSizeListArray.from_arrays(
                    pa.array(rows.ravel()), collector.dimensions
                )
                if per_token:
                    ends = np.cumsum([0, *(len(one.ids) for one in tokens)])
                    gradients = pa.ListArray.from_arrays(pa.array(ends, pa.int32()), gradients)
                writer.write_batch(pa.record_batch([gradients, pa.array(losses)], schema=schema))
    return concatenate_datasets([dataset, Dataset.from_file(path)], axis=1)


def _few(documents: list[Tokens], dimensions: int) -> Iterator[list[Tokens]]:
    """`documents` in order, so many at a time that a row for each of their tokens fits into memory."""
    few: list[Tokens] = []
    for tokens in documents:
        if few and sum(len(one.ids) for one in (*few, tokens)) * dimensions > MAX_TOKEN_ROW_NUMBERS:
            yield few
            few = []
        few.append(tokens)
    yield few


def collect_rows(
    collector: RowCollector,
    tokens: Sequence[Tokens],
    budget_tokens: int,
    tick: Callable[[], object] = lambda: None,
) -> tuple[Float32[np.ndarray, "r D"], Float64[np.ndarray, " n"]]:
    """(rows [r, D] float32, losses [n] float64) of these documents, in their order, in memory.

    There is a row for each document, or, of a collector of token rows, for each of their tokens. `tell` is called after
    each batch.
    """
    firsts = np.cumsum([0, *(len(one.ids) if collector.per_token else 1 for one in tokens)])
    rows = np.zeros((firsts[-1], collector.dimensions), dtype=np.float32)
    losses = np.zeros(len(tokens))
    made = (
        (batch.numbers, *collector.collect(batch))
        for batch in batches(tokens, budget_tokens, collector.device)
    )
    for numbers, new_rows, new_losses in overlap_copies(made):
        losses[numbers] = new_losses
        tick()
        if not collector.per_token:
            rows[numbers] = new_rows
            continue
        for number, of_tokens in zip(numbers, new_rows, strict=True):
            count = firsts[number + 1] - firsts[number]
            rows[firsts[number] : firsts[number + 1]] = of_tokens[:count]
    return rows, losses
