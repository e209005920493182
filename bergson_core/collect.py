"""The only loop over documents that makes rows; where they go is the caller's business.

Legend: n samples, m layers, d numbers a layer (p² where projected), D = Σ d numbers a row.
"""

import tempfile
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
from datasets import Dataset, concatenate_datasets
from jaxtyping import Float, Float32, Float64
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from bergson_core.batching import BUDGET_TOKENS, Batch, Tokens, batches
from bergson_core.documents import token_chunks
from bergson_core.fitting import fit_processor
from bergson_core.gradients import GradientCollector
from bergson_core.hooks import frozen
from bergson_core.models import LanguageModel, wrap
from bergson_core.passes import forward_backward
from bergson_core.processor import GradientProcessor
from bergson_core.specs import ColumnsSpec


class RowCollector:
    """Runs batches through a model and lays each sample's gradients out as one row.

    A row is the layers' gradients in natural order of their names, each flattened: `slices` says where each
    one is. Hooks are in place during a pass only, so that the same model may serve others between batches.
    """

    def __init__(
        self,
        model: LanguageModel,
        processor: GradientProcessor,
        target_modules: str | Iterable[str] | None = None,
    ) -> None:
        self._collector = GradientCollector(model.model, processor, self._arrive, target_modules)
        self.layers = self._collector.layers
        self._model = model.tracking(self.layers.values())
        self.slices = _layout(self.layers, processor)
        self.dimensions = sum(part.stop - part.start for part in self.slices.values())
        self._rows = torch.empty(0)

    def collect(self, batch: Batch) -> tuple[Float[Tensor, "n D"], Float[Tensor, " n"]]:
        """(rows [n, D], losses [n]) of a batch, float32 or wider, on the model's device."""
        model = self._model.model
        wide = torch.promote_types(next(model.parameters()).dtype, torch.float32)
        self._rows = torch.zeros(len(batch), self.dimensions, dtype=wide, device=batch.input_ids.device)
        with frozen(model), self._collector:
            losses = forward_backward(self._model, batch)
        rows, self._rows = self._rows, torch.empty(0)
        return rows, losses

    def _arrive(self, name: str, gradient: Tensor) -> None:
        self._rows[:, self.slices[name]] += gradient.flatten(1)


def _layout(layers: dict, processor: GradientProcessor) -> dict[str, slice]:
    slices, start = {}, 0
    for name, layer in layers.items():
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
    target_modules: str | Iterable[str] | None = None,
    budget_tokens: int = BUDGET_TOKENS,
) -> Dataset:
    """`dataset` with two new columns: `gradients` [D] float32, one row a document, and `loss`, in nats.

    A gradient is that of the document's summed token cross-entropy; with a completion column, of the completion
    alone. Without `tokenizer` the column `input_ids` is used. `processor` defaults to that of `fit_processor`:
    Adafactor, fitted from a sample of `dataset`, and 16 × 16 numbers a layer. Memory does not grow with the
    dataset.
    Raises `InvalidInput` for a document that is longer than the model takes, or is not text.
    """
    columns = ColumnsSpec(prompt=prompt_column, completion=completion_column)
    if processor is None:
        processor = fit_processor(model, dataset, tokenizer, columns=columns, target_modules=target_modules)
    language_model = wrap(model, tokenizer)
    collector = RowCollector(language_model, processor, target_modules)
    schema = pa.schema({"gradients": pa.list_(pa.float32(), collector.dimensions), "loss": pa.float64()})
    directory = tempfile.mkdtemp(prefix="bergson-")  # lives as long as the dataset that maps it
    path = str(Path(directory) / "gradients.arrow")
    with pa.OSFile(path, "wb") as file, pa.ipc.new_stream(file, schema) as writer:
        for tokens in token_chunks(tokenizer, dataset, columns, language_model.max_tokens):
            rows, losses = collect_in_order(collector, tokens, language_model.device, budget_tokens)
            gradients = pa.FixedSizeListArray.from_arrays(pa.array(rows.ravel()), collector.dimensions)
            writer.write_batch(pa.record_batch([gradients, pa.array(losses)], schema=schema))
    return concatenate_datasets([dataset, Dataset.from_file(path)], axis=1)


def collect_in_order(
    collector: RowCollector, tokens: list[Tokens], device: torch.device, budget_tokens: int
) -> tuple[Float32[np.ndarray, "n D"], Float64[np.ndarray, " n"]]:
    """(rows [n, D] float32, losses [n] float64) of these documents, in their order, in memory."""
    rows = np.zeros((len(tokens), collector.dimensions), dtype=np.float32)
    losses = np.zeros(len(tokens))
    for batch in batches(tokens, budget_tokens, device):
        new_rows, new_losses = collector.collect(batch)
        rows[batch.numbers], losses[batch.numbers] = new_rows.float().cpu().numpy(), new_losses.cpu().numpy()
    return rows, losses
