"""What each step of a training run does for the documents that it saw, out of the run's own backward passes.

Legend: n samples of a micro-batch, N documents, D numbers a row.
"""

import hashlib
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any, Self, cast

import numpy as np
import torch
from datasets import Dataset
from torch import Tensor, nn

from bergson_core.data.dataset import READ_AT_ONCE
from bergson_core.errors import InvalidInput
from bergson_core.gradients.collector import GradientCollector
from bergson_core.gradients.processor import GradientProcessor
from bergson_core.gradients.row_collector import module_slices


class GradientRecorder:
    """While open, keeps the rows of the micro-batch at hand; `add` adds them to `rows` [N, D]."""

    def __init__(
        self,
        model: nn.Module,
        processor: GradientProcessor,
        modules: str | None,
        dataset: Dataset,
        rows: np.memmap,
    ) -> None:
        self.rows = rows
        self._collector = GradientCollector(model, processor, self._arrive, modules)
        self.modules = self._collector.modules
        self._slices = module_slices(self.modules, processor)
        self._model, self._places = model, _Places(dataset)
        self._batch: dict[str, Tensor] | None = None
        self._gradients = torch.empty(0)
        self._open = ExitStack()

    def __enter__(self) -> Self:
        hook = self._model.register_forward_pre_hook(self._begin, with_kwargs=True)
        self._open.callback(hook.remove)
        self._open.enter_context(self._collector)
        return self

    def __exit__(self, *exception: object) -> None:
        self._open.close()

    def add(self, learning_rate: float) -> None:
        """Adds the gradients since the last call, times the learning rate. Equal documents share theirs."""
        if self._batch is None:
            return
        gradients = (learning_rate * self._gradients).float().cpu().numpy()
        ids, mask = self._batch["input_ids"].cpu().numpy(), self._batch.get("attention_mask")
        seen = np.ones_like(ids, dtype=bool) if mask is None else mask.cpu().numpy().astype(bool)
        for tokens, present, gradient in zip(ids, seen, gradients, strict=True):
            numbers = self._places.of(tokens[present])
            self.rows[numbers] += gradient / len(numbers)
        self._batch = None

    def _begin(self, _module: nn.Module, _args: tuple, kwargs: dict[str, Any]) -> None:
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

    def _arrive(self, name: str, gradient: Tensor) -> None:
        self._gradients[:, self._slices[name]] += gradient.flatten(1)


class _Places:
    """Where in a dataset documents of given tokens are, by a hash of 64 bits of each: 16 bytes a document."""

    def __init__(self, dataset: Dataset) -> None:
        chunks = cast(Iterator[dict[str, Any]], dataset.select_columns("input_ids").iter(READ_AT_ONCE))
        hashes = [_hash(np.asarray(ids)) for chunk in chunks for ids in chunk["input_ids"]]
        unordered = np.array(hashes, dtype=np.uint64)
        self._order = np.argsort(unordered, kind="stable")
        self._hashes = unordered[self._order]

    def of(self, tokens: np.ndarray) -> np.ndarray:
        """The numbers of the documents that are `tokens`. Raises `InvalidInput` where there is none."""
        wanted = np.uint64(_hash(tokens))
        first, last = (np.searchsorted(self._hashes, wanted, side) for side in ("left", "right"))
        if first == last:
            raise InvalidInput(
                f"a batch holds {len(tokens)} tokens that are no document of the dataset: expected its rows as they "
                "are, neither packed, cut nor changed on the way, and an attention_mask where they are padded"
            )
        return self._order[first:last]


def _hash(tokens: np.ndarray) -> int:
    return int.from_bytes(hashlib.blake2b(tokens.astype("<i8").tobytes(), digest_size=8).digest(), "little")
