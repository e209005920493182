"""What the stages of a build have in common: the spec, the directory, the callbacks, and the costly steps."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeAlias

import torch

from bergson_core.gradients.normalizers.matrix_root import EighFunction
from bergson_core.gradients.processor import GradientProcessor
from bergson_core.gradients.row_collector import RowCollector
from bergson_core.models.language_model import LanguageModel
from bergson_core.schemas.build import BuildSpec
from bergson_core.schemas.results import Progress
from bergson_core.tokens.batching import Batch
from bergson_core.utils.progress import ConfirmCallback, ProgressCallback

MakeCollector: TypeAlias = Callable[[LanguageModel, GradientProcessor, str | None], RowCollector]
"""(model, processor, pattern of the modules to track) → collector of rows."""


def ignore_progress(_progress: Progress) -> None:
    """The progress callback of callers that pass none."""


def always_confirm() -> None:
    """The confirm callback of callers that pass none."""


@dataclass(frozen=True)
class CostlySteps:
    """The steps that a build spends most of its time on.

    An ordinary build runs them in full, by default. The trial build of an estimate replaces them with steps that do
    part of the work and count the time that the rest would take (`partial_steps.py`).

    Attributes:
        select_batches: Selects the batches that the normalizers are fitted from; by default all of them.
        make_collector: Creates the collector, which runs documents through the model and returns their rows.
        eigh: The eigendecomposition that K-FAC and the preconditioner use.
    """

    select_batches: Callable[[Iterable[Batch]], Iterator[Batch]] = iter
    make_collector: MakeCollector = RowCollector
    eigh: EighFunction = torch.linalg.eigh


@dataclass(frozen=True)
class BuildContext:
    """What every stage of a build needs to know.

    Attributes:
        spec: The spec of the build.
        output: The directory of the index.
        report: Called with the progress after every batch, and some fifty times a second meanwhile. It may raise to
            stop the build.
        confirm: Called before each shard is accepted and before the index is published. It may raise to stop the build.
        steps: The costly steps.
    """

    spec: BuildSpec
    output: Path
    report: ProgressCallback = ignore_progress
    confirm: ConfirmCallback = always_confirm
    steps: CostlySteps = field(default_factory=CostlySteps)
