"""Fits the processor of an index: that of its model, or one for each checkpoint, from the same sample."""

from collections.abc import Callable, Iterable

import torch

from bergson_core.gradients.checkpoints.processors import checkpoint_seed, join_processors
from bergson_core.gradients.normalizers.matrix_root import EighFunction
from bergson_core.gradients.processor import GradientProcessor
from bergson_core.gradients.processor_fitting import fit_processor_from_batches
from bergson_core.models.language_model import LanguageModel
from bergson_core.models.modules import TrackedModule
from bergson_core.schemas.build import GradientSpec
from bergson_core.tokens.batching import Batch


def fit_index_processor(
    model: LanguageModel,
    modules: dict[str, TrackedModule],
    sample: Iterable[Batch],
    settings: GradientSpec,
    tick: Callable[[], object] = lambda: None,
    eigh: EighFunction = torch.linalg.eigh,
) -> GradientProcessor:
    """Returns the processor of an index, whose normalizers hold no more than its projections need.

    Arguments and errors are those of `fit_processor_from_batches`. The sample is read once or more at each checkpoint
    of the model.
    """

    def fit(own_settings: GradientSpec) -> GradientProcessor:
        return fit_processor_from_batches(model, modules, sample, own_settings, tick, eigh, whole=False)

    if model.checkpoints is None:
        return fit(settings)
    with model.checkpoints.in_turn(range(len(model.checkpoints))) as numbers:
        processors = [
            fit(settings.model_copy(update={"seed": checkpoint_seed(settings.seed, number)}))
            for number in numbers
        ]
    return join_processors(processors, settings.seed)
