"""What happens to the queries when documents are left out of training, or learnt once more: removal and tail-patch.

Legend: q queries, n documents, k best documents of a query.

Both are expensive, so that only some methods are measured.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from jaxtyping import Float

from benchmarks.quality.experiments import Experiment
from benchmarks.quality.methods import BM25, DEFAULT, GOLD, RANDOM, RECOMMENDED, REFERENCE
from benchmarks.quality.paired_bootstrap import Resampled, mean_over_queries
from bergson_core.attribution.unlearning import FIT_SAMPLE_SIZE, StepDirection, Unlearner
from bergson_core.evaluation.retraining_measures import Retrainer, loss_rises_after_removal
from bergson_core.evaluation.score_tables import best_positions
from bergson_core.evaluation.step_effects import log_probabilities_after_steps
from bergson_core.gradients.processor_fitting import sample_row_numbers
from bergson_core.schemas.evaluation import TrainingSpec
from bergson_core.utils.atomic_files import write_atomically

METHODS: Final = (
    RANDOM,
    BM25,
    GOLD,
    REFERENCE,
    "none, not projected, none, all",
    DEFAULT,
    RECOMMENDED,
    "kfac, sign, p = 64, row, mlp",
)
"""Methods that are measured unless others are named."""
REMOVAL, TAIL_PATCH, UNLEARNING = "removal", "tail_patch", "unlearning"
BEST_DOCUMENTS: Final = 3
REMOVED_SHARE: Final = 0.01
_DIRECTIONS: Final[Mapping[str, StepDirection]] = {TAIL_PATCH: "learn", UNLEARNING: "unlearn"}


@dataclass(frozen=True)
class Interventions:
    """What is done to the best documents of some methods.

    Attributes:
        removal_queries: Queries whose best 1 % of documents are left out of training; each takes `removal_repeats` runs
            for each method. 0 leaves this measure out.
        removal_repeats: Runs with different seeds to average over.
        steps: Whether a step of learning and a step of unlearning are taken on each of the three best documents.
        methods: Names of the methods.
    """

    removal_queries: int = 0
    removal_repeats: int = 2
    steps: bool = False
    methods: tuple[str, ...] = METHODS

    def measure(
        self, experiment: Experiment, tables: Mapping[str, Float[np.ndarray, "q n"]]
    ) -> dict[str, dict[str, Resampled]]:
        """Returns, by method, the rise of the loss without its best documents, and what steps on them change, in nats.

        Args:
            experiment: The experiment.
            tables: Scores of the methods.
        """
        measured: dict[str, dict[str, Resampled]] = {name: {} for name in tables}
        seed = experiment.settings.seed
        if self.removal_queries and tables:
            for name, rises in self._removal_rises(experiment, tables).items():
                measured[name][REMOVAL] = mean_over_queries(rises, seed)
        if self.steps and tables:
            for measure, changes in step_changes(experiment, tables).items():
                for name, values in changes.items():
                    measured[name][measure] = mean_over_queries(np.array(values), seed)
        return measured

    def _removal_rises(
        self, experiment: Experiment, tables: Mapping[str, Float[np.ndarray, "q n"]]
    ) -> dict[str, Float[np.ndarray, " _"]]:
        settings = experiment.settings
        retrainer = Retrainer(
            experiment.trainer,
            experiment.case.queries,
            settings.data_dir / "retrained",
            settings.processes,
            lambda progress: None,
        )
        spec = TrainingSpec(
            removal_queries=self.removal_queries,
            removal_share=REMOVED_SHARE,
            removal_repeats=self.removal_repeats,
        )
        return loss_rises_after_removal(retrainer, tables, spec, settings.seed)


def step_changes(
    experiment: Experiment, tables: Mapping[str, Float[np.ndarray, "q n"]]
) -> dict[str, dict[str, list[float]]]:
    """Returns, for tail-patch and unlearning, the change of each query's log-probability, by method.

    It is the mean over the three best documents of the query, each of which is stepped on alone. The changes are kept
    in the experiment's directory.
    """
    best = {name: best_positions(table, BEST_DOCUMENTS) for name, table in tables.items()}
    inputs: Any = [experiment.key, FIT_SAMPLE_SIZE, {name: table.tolist() for name, table in best.items()}]
    digest = hashlib.sha256(json.dumps(inputs, sort_keys=True).encode()).hexdigest()
    path = experiment.directory / f"steps-{digest[:16]}.json"
    if not path.is_file():
        changes = {
            measure: _take_steps(experiment, direction, best) for measure, direction in _DIRECTIONS.items()
        }
        write_atomically(path, json.dumps(changes).encode())
    return json.loads(path.read_text())


def _take_steps(
    experiment: Experiment, direction: StepDirection, best: Mapping[str, np.ndarray]
) -> dict[str, list[float]]:
    case = experiment.case
    sample = sample_row_numbers(len(case.documents), FIT_SAMPLE_SIZE, 0)
    unlearner = Unlearner.fit(case.model, [case.documents[number] for number in sample])
    before, after = log_probabilities_after_steps(unlearner, direction, best, case.documents, case.queries)
    return {name: (table - before[:, None]).mean(1).tolist() for name, table in after.items()}
