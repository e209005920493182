"""The normalizers of whole gradients, fitted again where an index keeps only what its projections need.

An index of K-FAC-whitened rows keeps L S^-½ and R A^-½ (`gradients.normalizers.projected_kfac`), from which no whole
gradient can be whitened. So when whole gradients are asked for, the roots are fitted again, once for an open index,
from the documents that the build took as its sample, as far as they have not been taken down.

The work is divided into steps. What is done is kept when a query has no more time for the rest, and the next query goes
on with it.
"""

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from functools import partial
from typing import Final, Protocol

from bergson_core.attribution.document_selection import DocumentSelector, RowLocation
from bergson_core.attribution.follow_up.answer_steps import Steps
from bergson_core.errors import InvalidInput
from bergson_core.gradients.fitting_sample import choose_sample
from bergson_core.gradients.normalizer_fitting import NormalizerFitting, kfac_sides, require_labels
from bergson_core.gradients.normalizers.normalizers import Normalizer
from bergson_core.gradients.normalizers.projected_kfac import ProjectedKfacNormalizer
from bergson_core.gradients.processor import GradientProcessor
from bergson_core.gradients.processor_fitting import label_sampler
from bergson_core.gradients.row_collector import RowCollector
from bergson_core.models.batch_budget import free_memory_bytes
from bergson_core.storage.manifest import Manifest
from bergson_core.tokens.batching import Batch, iter_batches
from bergson_core.tokens.tokenization import Tokens
from bergson_core.utils.background import iterate_while_running

_MEMORY_SHARE: Final = 0.5
"""Share of the free memory that the roots may take."""
_ROOT_BYTES: Final = 8
"""Bytes of a number of a root: 4 in float32, and as many of the moment that the root is made of."""


class Pace(Protocol):
    """Tells whether there is time for another pass through the model."""

    def has_time_for(self, tokens: int) -> bool:
        """Returns whether a pass over so many tokens would be over in time."""
        ...

    def measure(self, tokens: int) -> AbstractContextManager[None]:
        """Measures the pass over so many tokens that runs in the context."""
        ...


class WholeNormalizers:
    """Makes the processor of whole gradients of an index when it is first asked for. For use by one thread.

    Args:
        manifest: Manifest of the index.
        collector: Computes rows as the index holds them; its model and its modules are used.
        processor: The processor of the index.
        selector: Finds the documents of the index.

    Attributes:
        processor: The processor of the index; once they are fitted, one with the normalizers of whole gradients.
    """

    def __init__(
        self,
        manifest: Manifest,
        collector: RowCollector,
        processor: GradientProcessor,
        selector: DocumentSelector,
    ) -> None:
        self._manifest, self._collector, self._selector = manifest, collector, selector
        self.processor = processor
        self._fitting: NormalizerFitting | None = None
        self._batches: list[Batch] = []  # those that are not yet run
        self._fitted: dict[str, Normalizer] = {}

    def prepare(self, pace: Pace, budget_tokens: int) -> Steps[GradientProcessor | None]:
        """Returns a processor whose normalizers are for whole gradients, or None if there is no time to fit them.

        Args:
            pace: Tells whether there is time.
            budget_tokens: The most tokens of a batch, padding included.

        Raises:
            InvalidInput: The roots do not fit into memory, or no document of the sample is left.
        """
        normalizers = self.processor.normalizers.values()
        if not any(isinstance(normalizer, ProjectedKfacNormalizer) for normalizer in normalizers):
            return self.processor
        if not pace.has_time_for(0):
            return None
        if self._fitting is None:
            self._start(budget_tokens)
        fitting = self._fitting
        assert fitting is not None
        while self._batches:
            tokens = self._batches[0].input_ids.numel()
            if not pace.has_time_for(tokens):
                return None
            with pace.measure(tokens):
                fitting.add(self._batches.pop(0))
            yield
        require_labels(fitting.names, fitting.samples)
        # Another query may be in the middle of this too: a root that both make is the same.
        for name in fitting.names:
            if name not in self._fitted:
                if not pace.has_time_for(0):
                    return None
                self._fitted[name] = yield from iterate_while_running(partial(fitting.make, name), None)
        self.processor = GradientProcessor(None, self._fitted, include_bias=self.processor.include_bias)
        self._fitting = None
        return self.processor

    def _start(self, budget_tokens: int) -> None:
        model, modules = self._collector.model, self._collector.modules
        settings = self._manifest.spec.gradients
        size = _ROOT_BYTES * sum(side**2 for tracked in modules.values() for side in kfac_sides(tracked))
        free = free_memory_bytes(model.device)
        if size > _MEMORY_SHARE * free:
            raise InvalidInput(
                f"rescore needs the whole roots of K-FAC, {size / 2**30:.1f} GiB of at most half of the "
                f"{free / 2**30:.1f} GiB of memory that are free: leave `rescore` out"
            )
        sample = choose_sample(self._built_rows(), settings, self._tokenize)
        self._batches = list(iter_batches(sample, budget_tokens, model.device))
        self._fitting = NormalizerFitting(
            model,
            modules,
            settings.normalizer,
            include_bias=settings.include_bias,
            sampler=label_sampler(model, settings),
        )

    def _built_rows(self) -> int:
        """Returns the number of rows that are left of those of the build, which come before all others."""
        shards = self._manifest.shards
        built = min(shard.generation for shard in shards)
        return sum(shard.rows for shard in shards if shard.generation == built)

    def _tokenize(self, numbers: Sequence[int]) -> Mapping[int, Tokens]:
        """Returns the tokens of those of these rows that may be shown, by the number of the row."""
        locations = {number: location for number in numbers if (location := self._locate(number))}
        documents = self._selector.tokenize(list(locations.values()))
        return dict(zip(locations, documents, strict=True))

    def _locate(self, number: int) -> RowLocation | None:
        for shard_number, shard in enumerate(self._selector.searcher.shards):
            offset = number - shard.entry.first_row
            if 0 <= offset < shard.entry.rows and self._selector.is_visible((shard_number, offset)):
                return shard_number, offset
        return None
