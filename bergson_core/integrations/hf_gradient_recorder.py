"""Records what each step of a training run does for the documents that it saw, from the run's own backward passes.

Legend: n samples of a micro-batch, N documents, D numbers a row.
"""

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from typing import Any, Self, cast

import numpy as np
import torch
from datasets import Dataset
from jaxtyping import Int
from torch import Tensor, nn

from bergson_core.data.documents import READ_CHUNK_SIZE
from bergson_core.errors import InvalidInput
from bergson_core.gradients.collector import GradientCollector
from bergson_core.gradients.processor import GradientProcessor
from bergson_core.gradients.row_collector import module_slices


class GradientRecorder:
    """Collects the gradients of each micro-batch while it is open; `add_to_rows` adds them to the documents' rows.

    Args:
        model: The model that is trained.
        processor: How gradients are normalized and projected.
        modules: The names of the modules to track.
        dataset: The documents, with a column `input_ids`.
        rows: The rows so far [N, D]. They are changed in place.

    Attributes:
        modules: The tracked modules by name.
    """

    def __init__(
        self,
        model: nn.Module,
        processor: GradientProcessor,
        modules: Sequence[str],
        dataset: Dataset,
        rows: np.memmap,
    ) -> None:
        self.rows = rows
        self._collector = GradientCollector(model, processor, self._add_gradient, modules)
        self.modules = self._collector.modules
        self._slices = module_slices(self.modules, processor)
        self._model, self._documents = model, _DocumentLookup(dataset)
        self._batch: dict[str, Tensor] | None = None
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

        Documents with the same tokens share a gradient in equal parts.

        Raises:
            InvalidInput: The tokens of a sample are not those of any document.
        """
        if self._batch is None:
            return
        gradients = (learning_rate * self._gradients).float().cpu().numpy()
        ids, mask = self._batch["input_ids"].cpu().numpy(), self._batch.get("attention_mask")
        is_token = np.ones_like(ids, dtype=bool) if mask is None else mask.cpu().numpy().astype(bool)
        for sample_ids, sample_mask, gradient in zip(ids, is_token, gradients, strict=True):
            numbers = self._documents.find(sample_ids[sample_mask])
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
        self._batch = {key: value for key, value in kwargs.items() if key in ("input_ids", "attention_mask")}
        ids = self._batch["input_ids"]
        self._gradients = torch.zeros(len(ids), self.rows.shape[1], device=ids.device)

    def _add_gradient(self, name: str, gradient: Tensor) -> None:
        self._gradients[:, self._slices[name]] += gradient.flatten(1)


class _DocumentLookup:
    """Finds documents of a dataset by a 64-bit hash of their tokens. Takes 16 bytes for each document."""

    def __init__(self, dataset: Dataset) -> None:
        chunks = cast(Iterator[dict[str, Any]], dataset.select_columns("input_ids").iter(READ_CHUNK_SIZE))
        hashes = np.array(
            [_hash_tokens(np.asarray(ids)) for chunk in chunks for ids in chunk["input_ids"]], dtype=np.uint64
        )
        self._order = np.argsort(hashes, kind="stable")
        self._sorted_hashes = hashes[self._order]

    def find(self, tokens: Int[np.ndarray, " s"]) -> Int[np.ndarray, " k"]:
        """Returns the numbers of all documents with exactly these tokens.

        Raises:
            InvalidInput: There is no such document.
        """
        token_hash = np.uint64(_hash_tokens(tokens))
        first, end = (np.searchsorted(self._sorted_hashes, token_hash, side) for side in ("left", "right"))
        if first == end:
            raise InvalidInput(
                f"a batch holds {len(tokens)} tokens that are no document of the dataset: expected its rows as they "
                "are, neither packed, cut nor changed on the way, and an attention_mask where they are padded"
            )
        return self._order[first:end]


def _hash_tokens(tokens: np.ndarray) -> int:
    return int.from_bytes(hashlib.blake2b(tokens.astype("<i8").tobytes(), digest_size=8).digest(), "little")
