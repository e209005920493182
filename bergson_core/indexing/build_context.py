"""What every stage of a build has in common: the spec, the directory, the callbacks, and how costly steps are run."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeAlias

import torch

from bergson_core.data.batching import Batch
from bergson_core.gradients.matrix_root import EighFunction
from bergson_core.gradients.processor import GradientProcessor
from bergson_core.gradients.row_collector import RowCollector
from bergson_core.models.language_model import LanguageModel
from bergson_core.schemas.build import BuildSpec
from bergson_core.schemas.results import Progress
from bergson_core.utils.progress import ConfirmCallback, ProgressCallback

MakeCollector: TypeAlias = Callable[[LanguageModel, GradientProcessor, str | None], RowCollector]
"""Makes the collector of a model's rows from the model, the processor, and the pattern of the tracked modules."""


def ignore_progress(_progress: Progress) -> None:
    """Stands for a progress callback where the caller gave none."""


def always_confirm() -> None:
    """Stands for a confirm callback where the caller gave none."""


@dataclass(frozen=True)
class CostlySteps:
    """The steps that a build spends its time on. An ordinary build runs them in full.

    The trial build of an estimate passes steps that are run in part only, with the time of the rest counted
    (`partial_steps.py`).

    Attributes:
        select_batches: Which batches of the sample the normalizers are fitted from: by default all of them.
        make_collector: What runs documents through the model and returns their gradients as rows.
        eigh: The eigendecomposition that K-FAC and the preconditioner use.
    """

    select_batches: Callable[[Iterable[Batch]], Iterator[Batch]] = iter
    make_collector: MakeCollector = RowCollector
    eigh: EighFunction = torch.linalg.eigh


@dataclass(frozen=True)
class BuildContext:
    """What every stage of a build needs to know.

    Attributes:
        spec: What is built.
        output: The directory of the index.
        report: Called with the progress after every batch; may raise to stop the build.
        confirm: Called before each publication; may raise to prevent it.
        steps: How the costly steps are run.
    """

    spec: BuildSpec
    output: Path
    report: ProgressCallback = ignore_progress
    confirm: ConfirmCallback = always_confirm
    steps: CostlySteps = field(default_factory=CostlySteps)
