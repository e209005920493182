"""The costly steps of a build, run in part: a trial build leaves out work that is slow and repeats itself.

The time of the work left out is extrapolated from the work that was done, and counted.

Legend: n samples of a batch, D numbers per row.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from time import perf_counter
from typing import Final

import torch
from jaxtyping import Float
from torch import Tensor

from bergson_core.gradients.processor import GradientProcessor
from bergson_core.gradients.row_collector import RowCollector
from bergson_core.indexing.estimation.cost_meter import CostMeter, trim_allocator
from bergson_core.models.language_model import LanguageModel
from bergson_core.tokens.batching import Batch

_MEASURED_S: Final = 5.0
"""Seconds of passes that the rate is measured from, if there are enough batches."""
_DOCUMENT_GROWTH: Final = 4
"""A batch with this many times the documents of the largest batch so far always runs."""


class PassSampler:
    """Decides which batches run through the model, and counts the time of all of them.

    Batches come with the longest documents first. All of them run until `_MEASURED_S` seconds have passed. After that,
    a batch runs only if it has `_DOCUMENT_GROWTH` times as many documents as any that ran before: batches have about
    the same number of tokens, but the shorter the documents, the more rows a batch has, which take time and memory too.
    The first batch with `largest_batch` documents always runs.
    """

    def __init__(self, meter: CostMeter, device: torch.device, largest_batch: int | None = None) -> None:
        self._meter, self._device, self._largest_batch = meter, device, largest_batch
        self._most_documents = 0  # in a batch that ran
        self._measured_s, self._s_per_token = 0.0, 0.0

    @contextmanager
    def measure_pass(self, batch: Batch) -> Iterator[bool]:
        """Yields whether to run the batch, which the caller then does inside the context, and counts its time."""
        if not self._is_chosen(batch):
            self._meter.count("passes", spared=self._s_per_token * batch.n_tokens)
            yield False
            return
        started = perf_counter()
        yield True
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        seconds = perf_counter() - started
        self._meter.count("passes", spent=seconds)
        self._meter.measured_pass_s += seconds
        self._measured_s += seconds
        self._s_per_token = seconds / batch.n_tokens
        self._most_documents = max(self._most_documents, len(batch))
        self._meter.allocator_bytes = self._meter.allocator_bytes or trim_allocator()

    def select(self, batches: Iterable[Batch]) -> Iterator[Batch]:
        """Yields the batches to run. The time until the next batch is requested counts as the time of the pass.

        Each call measures anew, since a build may read its sample more than once.
        """
        self._most_documents, self._measured_s = 0, 0.0
        for batch in batches:
            with self.measure_pass(batch) as is_run:
                if is_run:
                    yield batch

    def _is_chosen(self, batch: Batch) -> bool:
        count = len(batch)
        is_larger = (
            count >= _DOCUMENT_GROWTH * self._most_documents
            or self._most_documents < count == self._largest_batch
        )
        return bool(batch.labelled.any()) and (is_larger or self._measured_s < _MEASURED_S)


class SampledRowCollector(RowCollector):
    """Collects the rows of the batches that a `PassSampler` chooses, and draws random rows for all others."""

    def __init__(
        self, passes: PassSampler, model: LanguageModel, processor: GradientProcessor, modules: str | None
    ) -> None:
        super().__init__(model, processor, modules)
        self._passes = passes

    def collect(self, batch: Batch) -> tuple[Float[Tensor, "n D"], Float[Tensor, " n"]]:
        """Returns the rows [n, D] and losses [n] of a batch: random rows and losses of 0 if the batch is left out."""
        with self._passes.measure_pass(batch) as is_run:
            if is_run:
                return super().collect(batch)
        dtype = torch.promote_types(next(self.model.model.parameters()).dtype, torch.float32)
        rows = torch.randn(len(batch), self.dimensions, dtype=dtype, device=self.device)
        return rows, rows.new_zeros(len(batch))


class DecompositionSampler:
    """An eigendecomposition that decomposes one matrix of each size, and treats all others as the identity."""

    def __init__(self, meter: CostMeter) -> None:
        self._meter = meter
        self._seconds_by_size: dict[int, float] = {}

    def __call__(self, matrix: Tensor) -> tuple[Tensor, Tensor]:
        """Returns the eigenvalues [d] and eigenvectors [d, d] of a symmetric matrix [d, d], or of the identity."""
        size = len(matrix)
        if size in self._seconds_by_size:
            self._meter.count("decompositions", spared=self._seconds_by_size[size])
            return matrix.new_ones(size), torch.eye(size, dtype=matrix.dtype, device=matrix.device)
        started = perf_counter()
        values, vectors = torch.linalg.eigh(matrix)
        self._seconds_by_size[size] = perf_counter() - started
        self._meter.count("decompositions", spent=self._seconds_by_size[size])
        return values, vectors
