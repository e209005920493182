"""Records what each step of a training run does for the documents that it saw, from the run's own backward passes.

Legend: n samples of a micro-batch, N documents, D numbers per row.
"""

from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor, nn

from bergson_core.errors import InvalidInput
from bergson_core.gradients.collector import GradientCollector
from bergson_core.gradients.processor import GradientProcessor
from bergson_core.gradients.row_collector import module_slices
from bergson_core.integrations.hf_document_lookup import DocumentLookup
from bergson_core.tokens.token_columns import TOKEN_COLUMNS


class GradientRecorder:
    """Collects the gradients of each micro-batch while it is open; `add_to_rows` adds them to the documents' rows.

    Args:
        model: The model that is trained.
        processor: How gradients are normalized and projected.
        modules: The names of the modules to track.
        documents: Finds the documents of a batch.
        rows: The rows so far [N, D]. They are changed in place.

    Attributes:
        modules: The tracked modules by name.
    """

    def __init__(
        self,
        model: nn.Module,
        processor: GradientProcessor,
        modules: Sequence[str],
        documents: DocumentLookup,
        rows: np.memmap,
    ) -> None:
        self.rows = rows
        self._collector = GradientCollector(model, processor, self._add_gradient, modules)
        self.modules = self._collector.modules
        self._slices = module_slices(self.modules, processor)
        self._model, self._documents = model, documents
        self._batch: dict[str, Any] | None = None
        self._gradients = torch.empty(0)
        self._hooks = ExitStack()

    def __enter__(self) -> Self:
        hook = self._model.register_forward_pre_hook(self._start_batch, with_kwargs=True)
        self._hooks.callback(hook.remove)
        self._hooks.enter_context(self._collector)
        return self

    def __exit__(self, *exception: object) -> None:
        self._hooks.close()

    def add_to_rows(self, learning_rate: float) -> None:
        """Adds the gradients since the last call, times the learning rate, to the rows of their documents.

        Documents with the same tokens and labels share a gradient in equal parts.

        Raises:
            InvalidInput: The tokens and labels of a sample are not those of any document.
        """
        if self._batch is None:
            return
        gradients = (learning_rate * self._gradients).float().cpu().numpy()
        for numbers, gradient in zip(self._documents.find_samples(self._batch), gradients, strict=True):
            self.rows[numbers] += gradient / len(numbers)
        self._batch = None

    def _start_batch(self, _module: nn.Module, _args: tuple, kwargs: dict[str, Any]) -> None:
        """Keeps the tokens of a batch and clears the gradients. A hook that runs before each forward pass."""
        if not torch.is_grad_enabled():  # an evaluation
            return
        if self._batch is not None:
            raise InvalidInput(
                "the model runs twice before a step: expected one pass a micro-batch, whose loss is back-propagated"
            )
        if not isinstance(kwargs.get("input_ids"), Tensor):
            raise InvalidInput("the model is called without input_ids; expected batches of tokens")
        self._batch = {name: value for name, value in kwargs.items() if name in TOKEN_COLUMNS}
        ids = self._batch["input_ids"]
        self._gradients = torch.zeros(len(ids), self.rows.shape[1], device=ids.device)

    def _add_gradient(self, name: str, gradient: Tensor) -> None:
        self._gradients[:, self._slices[name]] += gradient.flatten(1)
