"""Measures that train the model again on part of its documents: the linear datamodelling score, and removal.

Legend: q queries, n documents, M training runs.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float

from bergson_core.attribution.soft_threshold import soft_threshold
from bergson_core.errors import InvalidInput
from bergson_core.evaluation.inputs import EvaluationInputs
from bergson_core.evaluation.metrics import bootstrap_interval, linear_datamodelling_score
from bergson_core.evaluation.retraining import losses_after_retraining, random_subsets
from bergson_core.evaluation.score_tables import ScoreTable, best_positions
from bergson_core.evaluation.trainers import BuiltInTrainer, CommandTrainer, Trainer, require_placeholders
from bergson_core.gradients.processor_fitting import sample_row_numbers
from bergson_core.models.loading import load_model
from bergson_core.schemas.evaluation import Interval, TrainingSpec
from bergson_core.schemas.results import Progress
from bergson_core.tokens.tokenization import Tokens
from bergson_core.utils.progress import ProgressCallback


class DatamodellingScores(NamedTuple):
    """The linear datamodelling score of the scores as they are, and after the soft threshold."""

    plain: Interval
    thresholded: Interval


@dataclass(frozen=True)
class Retrainer:
    """Trains on subsets of the documents and computes the losses of the queries afterwards.

    Attributes:
        trainer: Trains on a subset.
        queries: The queries; their completions are labelled.
        cache: Directory where the losses of each run are kept.
        processes: Number of runs at the same time.
        report: Called after each run.
    """

    trainer: Trainer
    queries: Sequence[Tokens]
    cache: Path
    processes: int
    report: ProgressCallback

    def losses(
        self, subsets: Sequence[Bool[np.ndarray, " n"]], seeds: Sequence[int], stage: str
    ) -> Float[np.ndarray, "M q"]:
        """Returns the loss of each query after each run, in nats.

        Args:
            subsets: Masks that are true for the documents that a run trains on.
            seeds: A seed for each run.
            stage: The stage that progress is reported for.
        """
        return losses_after_retraining(
            self.trainer,
            subsets,
            seeds,
            self.queries,
            self.cache,
            processes=self.processes,
            on_run=lambda done, total: self.report(
                Progress(stage=stage, done=done, total=total, unit="runs")
            ),
        )


def make_trainer(inputs: EvaluationInputs, training: TrainingSpec) -> Trainer:
    """Makes the trainer that a spec describes.

    Raises:
        InvalidInput: The spec names none or several of a command, a model to start from, and training from scratch; or
            its command has no placeholder for the documents or the model.
        ModelNotFound: The model to start from does not exist.
    """
    sources = [training.command is not None, training.start is not None, training.scratch]
    if sum(sources) != 1:
        raise InvalidInput(
            "lds and removal train the model again: expected one of a training command, a model to start from, or "
            f"scratch; got {sum(sources) or 'none'}"
        )
    documents, index = inputs.documents, inputs.index
    if training.command is not None:
        require_placeholders(training.command)
        return CommandTrainer(training.command, documents.fields)
    if index.manifest.spec.columns.chosen is not None:
        raise InvalidInput(
            "lds and removal: the built-in loop does not train on preference pairs; expected a training command, which "
            "gets `prompt`, `completion` (the chosen one) and `rejected`"
        )
    # The loop takes the mean over tokens, whatever the loss of the index is: only the documents' weights count.
    weighted = [
        replace(tokens, weight=weight)
        for tokens, weight in zip(documents.tokens, documents.weights, strict=True)
    ]
    loop_settings = (weighted, training.schedule, training.scratch)
    if training.start is not None:
        return BuiltInTrainer(training.start, *loop_settings, load_model(training.start).sha256)
    manifest = index.manifest
    return BuiltInTrainer(
        manifest.model_source,
        *loop_settings,
        index.model.sha256,
        manifest.revision,
        manifest.adapter_base,
    )


def measure_datamodelling(
    retrainer: Retrainer, tables: Mapping[str, ScoreTable], training: TrainingSpec, seed: int
) -> dict[str, DatamodellingScores]:
    """Trains on random subsets and measures how well each method's scores predict the losses of the queries.

    Args:
        retrainer: Trains, and computes the losses.
        tables: Scores of each method.
        training: Number and size of the subsets.
        seed: Seed of the subsets, of the runs and of the intervals.

    Returns:
        The linear datamodelling scores of each method.
    """
    (documents,) = {table.shape[1] for table in tables.values()}
    subsets = random_subsets(documents, training.runs, training.share, seed)
    losses = retrainer.losses(subsets, [seed + 1 + number for number in range(training.runs)], "retrain")
    masks = np.array(subsets)
    return {
        name: DatamodellingScores(
            plain=linear_datamodelling_score(table, masks, losses, seed),
            thresholded=linear_datamodelling_score(soft_threshold(table), masks, losses, seed),
        )
        for name, table in tables.items()
    }


def measure_removal(
    retrainer: Retrainer, tables: Mapping[str, ScoreTable], training: TrainingSpec, seed: int
) -> dict[str, Interval]:
    """Trains without each method's best documents of a query and measures how much the query's loss rises.

    The rise is taken against runs on all documents with the same seeds.

    Args:
        retrainer: Trains, and computes the losses.
        tables: Scores of each method.
        training: Number of queries, share of the documents that are removed, and number of repetitions.
        seed: Seed of the choice of queries and of the intervals, and the first seed of the runs.

    Returns:
        The rise of the loss for each method, in nats, averaged over queries.
    """
    ((query_count, document_count),) = {table.shape for table in tables.values()}
    chosen_queries = sample_row_numbers(query_count, training.removal_queries, seed)
    removed_count = max(1, round(training.removal_share * document_count))
    seeds = [seed + number for number in range(training.removal_repeats)]
    subsets = [np.ones(document_count, dtype=bool)]
    for table in tables.values():
        for query in chosen_queries:
            subset = np.ones(document_count, dtype=bool)
            subset[best_positions(table[query : query + 1], removed_count)[0]] = False
            subsets.append(subset)
    losses = retrainer.losses(
        [subset for subset in subsets for _ in seeds], [seed for _ in subsets for seed in seeds], "remove"
    )
    # The subsets are, in order: all documents, then those of each method and chosen query.
    mean_losses = losses.reshape(len(subsets), len(seeds), -1).mean(1)[:, chosen_queries]
    rises = (mean_losses[1:] - mean_losses[0]).reshape(len(tables), len(chosen_queries), -1)
    # Of the losses of all chosen queries, only that of the query whose documents were removed counts.
    return {
        name: bootstrap_interval(np.diagonal(rise), seed) for name, rise in zip(tables, rises, strict=True)
    }
