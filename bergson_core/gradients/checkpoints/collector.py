"""`CheckpointCollector`: rows of several checkpoints, one part after the other.

Legend: n samples, s positions, D numbers per row, of all checkpoints together.
"""

from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import final

import torch
from jaxtyping import Float
from torch import Tensor

from bergson_core.gradients.checkpoints.processors import processor_of_checkpoint
from bergson_core.gradients.processor import GradientProcessor
from bergson_core.gradients.row_collector import RowCollector, module_slices
from bergson_core.models.checkpoints.loading import checkpoint_prefix
from bergson_core.models.language_model import LanguageModel
from bergson_core.tokens.batching import Batch

MakeCollector = Callable[[LanguageModel, GradientProcessor, str | None], RowCollector]
"""(model, processor, pattern of the modules to track) → collector of rows."""


@final
class CheckpointCollector(RowCollector):
    """Runs batches through each checkpoint in turn, and lays out a sample's gradients at all of them as one row.

    The names of a checkpoint's modules begin with `checkpoint_prefix`. The losses are those of the last checkpoint that
    has modules among those that are tracked.

    Args:
        model: The model with its `checkpoints`.
        processor: The processor of the index, from `join_processors`.
        modules: Which modules to track at every checkpoint, as in `RowCollector`; or the names of all modules, with
            their prefixes.
        per_token: Whether to make a row for each position instead of one for each sample.
        share_with: A collector of the same model and processor whose projections this one uses too.
        make: Makes the collector of a checkpoint from a pattern of modules.
    """

    def __init__(
        self,
        model: LanguageModel,
        processor: GradientProcessor,
        modules: str | Iterable[str] | None = None,
        *,
        per_token: bool = False,
        share_with: RowCollector | None = None,
        make: MakeCollector = RowCollector,
    ) -> None:
        assert model.checkpoints is not None  # the caller has checked
        self._checkpoints = model.checkpoints
        shared = share_with._parts if isinstance(share_with, CheckpointCollector) else {}
        self._parts: dict[int, RowCollector] = {}
        for number, selection in _by_checkpoint(modules, len(model.checkpoints)).items():
            own = processor_of_checkpoint(processor, number)
            if selection is None or isinstance(selection, str):
                self._parts[number] = make(model, own, selection)
            else:
                self._parts[number] = RowCollector(
                    model, own, selection, per_token=per_token, share_with=shared.get(number)
                )
        self.modules = {
            (name := f"{checkpoint_prefix(number)}{tracked.name}"): replace(tracked, name=name)
            for number, part in self._parts.items()
            for tracked in part.modules.values()
        }
        self.slices = module_slices(self.modules, processor)
        self.dimensions = sum(part.dimensions for part in self._parts.values())

    @property
    def model(self) -> LanguageModel:
        """The model, without its split into backbone and head where a tracked module is in the head."""
        return self._any_part.model

    @property
    def device(self) -> torch.device:
        """The model's device."""
        return self._any_part.device

    @property
    def per_token(self) -> bool:
        """Whether there is a row for each position instead of one for each sample."""
        return self._any_part.per_token

    @property
    def _any_part(self) -> RowCollector:
        return next(iter(self._parts.values()))

    def collect(self, batch: Batch) -> tuple[Float[Tensor, "n *s D"], Float[Tensor, " n"]]:
        """Runs one forward and backward pass at each checkpoint.

        Returns:
            The rows, [n, D] or [n, s, D] per token, and the losses [n] of the last checkpoint in nats, as in
            `RowCollector.collect`.
        """
        with self._checkpoints.in_turn(list(self._parts)) as numbers:
            collected = [self._parts[number].collect(batch) for number in numbers]
        return torch.cat([rows for rows, _ in collected], dim=-1), collected[-1][1]


def open_row_collector(
    model: LanguageModel,
    processor: GradientProcessor,
    modules: str | Iterable[str] | None = None,
    *,
    make: MakeCollector = RowCollector,
) -> RowCollector:
    """Returns the collector of the rows of an index: a `CheckpointCollector` where the model has several checkpoints.

    Args:
        model: The model, on its device.
        processor: The processor of the index.
        modules: Which modules to track, as in `RowCollector`.
        make: Makes the collector of a model, or of a checkpoint, from a pattern of modules.
    """
    if model.checkpoints is not None:
        return CheckpointCollector(model, processor, modules, make=make)
    if modules is None or isinstance(modules, str):
        return make(model, processor, modules)
    return RowCollector(model, processor, modules)


def open_token_collector(
    model: LanguageModel, processor: GradientProcessor, modules: Iterable[str], share_with: RowCollector
) -> RowCollector:
    """Returns a collector of the rows of single tokens in some modules of an index.

    Args:
        model: The model, on its device.
        processor: The processor of the index.
        modules: The names of the modules, as the index has them.
        share_with: The collector of the index, whose projections this one uses too.
    """
    kind = RowCollector if model.checkpoints is None else CheckpointCollector
    return kind(model, processor, modules, per_token=True, share_with=share_with)


def _by_checkpoint(modules: str | Iterable[str] | None, count: int) -> dict[int, str | list[str] | None]:
    """Returns for each checkpoint that has modules among `modules` which of its own modules these are."""
    if modules is None or isinstance(modules, str):
        return dict.fromkeys(range(count), modules)
    names = list(modules)
    selections: dict[int, str | list[str] | None] = {}
    for number in range(count):
        prefix = checkpoint_prefix(number)
        if own := [name.removeprefix(prefix) for name in names if name.startswith(prefix)]:
            selections[number] = own
    return selections
