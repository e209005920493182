"""What happens to the queries when documents are left out of training, or learnt once more: removal and tail-patch.

Legend: q queries, n documents, k best documents of a query.

Both are expensive, so that only some methods are measured, and of a pretrained model only the tail-patch.

Removal: each run leaves out the best 1 % of the documents of eight queries at once. The rise of a query's loss is taken
against the mean of the method's other runs, which leave out as many documents, for other queries. So a run tells of
eight queries, and it does not count that a smaller corpus teaches less.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from jaxtyping import Float, Int

from benchmarks.quality.experiments import Experiment
from benchmarks.quality.methods import BM25, DEFAULT, RANDOM, REFERENCE, SMALL_ROWS
from benchmarks.quality.paired_bootstrap import Resampled, mean_over_queries
from benchmarks.quality.rescoring import ROWS, rescored_name
from bergson_core.attribution.unlearning import FIT_SAMPLE_SIZE, StepDirection, Unlearner
from bergson_core.errors import InvalidInput
from bergson_core.evaluation.retraining import losses_after_retraining
from bergson_core.evaluation.score_tables import best_positions
from bergson_core.evaluation.step_effects import log_probabilities_after_steps
from bergson_core.gradients.processor_fitting import sample_row_numbers
from bergson_core.utils.atomic_files import write_atomically

METHODS: Final = (
    RANDOM,
    BM25,
    REFERENCE,
    *ROWS,
    rescored_name(DEFAULT),
    rescored_name(SMALL_ROWS),
)
"""Methods that are measured unless others are named."""
REMOVAL, TAIL_PATCH, UNLEARNING = "removal", "tail_patch", "unlearning"
BEST_DOCUMENTS: Final = 3
REMOVED_SHARE: Final = 0.01
REMOVAL_GROUP: Final = 8
_DIRECTIONS: Final[Mapping[str, StepDirection]] = {TAIL_PATCH: "learn", UNLEARNING: "unlearn"}


@dataclass(frozen=True)
class Interventions:
    """What is done to the best documents of some methods.

    Attributes:
        removal_runs: Models that are trained without best documents, for each method: 0, or 2 and more.
        steps: Whether a step of learning and a step of unlearning are taken on each of the three best documents.
        methods: Names of the methods.
    """

    removal_runs: int = 0
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
        if self.removal_runs and tables and experiment.is_small:
            for name, rises in removal_rises(experiment, tables, self.removal_runs).items():
                measured[name][REMOVAL] = mean_over_queries(rises, seed)
        if self.steps and tables:
            for measure, changes in step_changes(experiment, tables).items():
                for name, values in changes.items():
                    measured[name][measure] = mean_over_queries(np.array(values), seed)
        return measured


def removal_rises(
    experiment: Experiment, tables: Mapping[str, Float[np.ndarray, "q n"]], runs: int
) -> dict[str, Float[np.ndarray, " _"]]:
    """Returns, for each method, the rise of the losses of queries without their best 1 % of documents, in nats.

    Args:
        experiment: The experiment.
        tables: Scores of the methods.
        runs: Runs of each method.

    Raises:
        InvalidInput: There are too few runs, or too few queries for them.
    """
    settings, documents = experiment.settings, len(experiment.case.documents)
    groups = draw_groups(len(experiment.case.queries), runs, settings.seed)
    removed_count = max(1, round(REMOVED_SHARE * documents))
    subsets = []
    for table in tables.values():
        best = best_positions(table, removed_count)
        for group in groups:
            subset = np.ones(documents, dtype=bool)
            subset[best[group]] = False
            subsets.append(subset)
    losses = losses_after_retraining(
        experiment.trainer,
        subsets,
        [settings.seed] * len(subsets),
        experiment.case.queries,
        settings.data_dir / "retrained",
        processes=settings.processes,
    ).reshape(len(tables), runs, -1)
    own = losses[:, np.arange(runs)[:, None], groups]
    others = (losses.sum(1)[:, groups] - own) / (runs - 1)
    return dict(zip(tables, (own - others).reshape(len(tables), -1), strict=True))


def draw_groups(queries: int, runs: int, seed: int) -> Int[np.ndarray, "runs _"]:
    """Draws a group of eight queries for each run, or of fewer where there are not enough queries."""
    size = min(REMOVAL_GROUP, queries // max(runs, 1))
    if runs < 2 or size < 1:
        raise InvalidInput(
            f"expected 2 or more runs of removal, and a query for each; got {runs} runs, and {queries} queries"
        )
    return np.random.default_rng(seed).permutation(queries)[: runs * size].reshape(runs, size)


def step_changes(
    experiment: Experiment, tables: Mapping[str, Float[np.ndarray, "q n"]]
) -> dict[str, dict[str, list[float]]]:
    """Returns, for tail-patch and perhaps unlearning, the change of each query's log-probability, by method.

    It is the mean over the three best documents of the query, each of which is stepped on alone. The changes are kept
    in the experiment's directory.
    """
    best = {name: best_positions(table, BEST_DOCUMENTS) for name, table in tables.items()}
    inputs: Any = [experiment.key, FIT_SAMPLE_SIZE, {name: table.tolist() for name, table in best.items()}]
    digest = hashlib.sha256(json.dumps(inputs, sort_keys=True).encode()).hexdigest()
    path = experiment.directory / f"steps-{digest[:16]}.json"
    if not path.is_file():
        changes = {
            measure: _take_steps(experiment, direction, best)
            for measure, direction in _DIRECTIONS.items()
            if measure == TAIL_PATCH or experiment.is_small
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
