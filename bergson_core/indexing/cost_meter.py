"""What a trial of a build leaves out because it takes long and is the same many times, and the time that this spares.

Legend: n samples of a batch, D numbers a row.
"""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from ctypes import CDLL
from pathlib import Path
from time import perf_counter
from typing import Any, Final, Literal

import torch
from jaxtyping import Float
from torch import Tensor
from torch.overrides import TorchFunctionMode

from bergson_core.data.batching import Batch
from bergson_core.gradients.processor import GradientProcessor
from bergson_core.gradients.row_collector import RowCollector
from bergson_core.models.loading import LanguageModel

_TIMED_S: Final = 5.0
"""Seconds of passes from which a rate is taken, where there are as many batches."""
_MORE_DOCUMENTS: Final = 4


class CostMeter:
    """Seconds by stage of the build, of passes through the model, of decompositions, and of all else.

    What was spared counts as if it had been done.
    """

    def __init__(self) -> None:
        self.stages: dict[str, dict[str, float]] = {}
        self.run_s = 0.0  # passes that were not spared
        self.kept_bytes = 0  # by the allocator, after the first pass
        self.begin("load")

    def begin(self, stage: str) -> None:
        """Ends the stage before."""
        now = perf_counter()
        if self.stages:
            self._here["other"] += now - self._since
        self._since = now
        self._here = self.stages[stage] = defaultdict(float)

    def count(
        self, what: Literal["passes", "decompositions"], *, spent: float = 0.0, spared: float = 0.0
    ) -> None:
        """Counts seconds of the stage at hand as such work."""
        self._here[what] += spent + spared
        self._here["other"] -= spent


class PassSampler:
    """Which batches the model runs on: some for `_TIMED_S` seconds, then those with four times the documents.

    Batches come with the longest documents first. They are of about as many tokens each, but the shorter the documents,
    the more rows, which take time and memory too: a batch of `most_documents` is run whatever was run before.
    """

    def __init__(self, meter: CostMeter, device: torch.device) -> None:
        self.most_documents: int | None = None
        self._meter, self._device = meter, device
        self._documents, self._seconds, self._rate = 0, 0.0, 0.0

    @contextmanager
    def take(self, batch: Batch) -> Iterator[bool]:
        """Whether to run the batch, which is to be done inside the context."""
        count = len(batch)
        more = count >= _MORE_DOCUMENTS * self._documents or self._documents < count == self.most_documents
        if not (bool(batch.labelled.any()) and (more or self._seconds < _TIMED_S)):
            self._meter.count("passes", spared=self._rate * batch.tokens)
            yield False
            return
        started = perf_counter()
        yield True
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        seconds = perf_counter() - started
        self._meter.count("passes", spent=seconds)
        self._meter.run_s += seconds
        self._seconds, self._rate = self._seconds + seconds, seconds / batch.tokens
        self._documents = max(self._documents, count)
        self._meter.kept_bytes = self._meter.kept_bytes or kept_by_allocator()

    def some(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        """Those of `batches` that are run."""
        for batch in batches:
            with self.take(batch) as runs:
                if runs:
                    yield batch


class SampledRowCollector(RowCollector):
    """Random rows for batches that the model does not run on."""

    def __init__(
        self, passes: PassSampler, model: LanguageModel, processor: GradientProcessor, modules: str | None
    ) -> None:
        super().__init__(model, processor, modules)
        self.passes = passes

    def collect(self, batch: Batch) -> tuple[Float[Tensor, "n D"], Float[Tensor, " n"]]:
        with self.passes.take(batch) as runs:
            if runs:
                return super().collect(batch)
        wide = torch.promote_types(next(self._model.model.parameters()).dtype, torch.float32)
        rows = torch.randn(len(batch), self.dimensions, dtype=wide, device=self.device)
        return rows, rows.new_zeros(len(batch))


class OneOfEachSize(TorchFunctionMode):
    """Decomposes the first matrix of each size while the context is open; the others count as the identity."""

    def __init__(self, meter: CostMeter) -> None:
        super().__init__()
        self._meter = meter
        self._seconds: dict[int, float] = {}

    def __torch_function__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is not torch.linalg.eigh:
            return func(*args, **(kwargs or {}))
        matrix: Tensor = args[0]
        side = len(matrix)
        if side in self._seconds:
            self._meter.count("decompositions", spared=self._seconds[side])
            return matrix.new_ones(side), torch.eye(side, dtype=matrix.dtype, device=matrix.device)
        started = perf_counter()
        found = func(matrix)
        self._seconds[side] = perf_counter() - started
        self._meter.count("decompositions", spent=self._seconds[side])
        return found


def resident_bytes(field: str) -> int:
    """Resident bytes of this process, mapped files included: now (VmRSS), or the most there were (VmHWM)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))


def kept_by_allocator() -> int:
    """Bytes that are free but still resident, which are given back."""
    before = resident_bytes("VmRSS")
    CDLL(None).malloc_trim(0)
    return before - resident_bytes("VmRSS")
