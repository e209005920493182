"""Evaluates an index: whether it finds the documents that are right, and whether its scores predict what happens.

A measure is one of the five ways to judge scores that `EvaluationSpec.measures` chooses from; a metric is a number that
comes out, such as MRR. The index and the baselines are measured with the same queries, steps and training runs.
"""

from collections.abc import Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any, Final

from bergson_core.attribution.index import AttributionIndex
from bergson_core.attribution.unlearning import FIT_SAMPLE_SIZE, StepDirection, Unlearner
from bergson_core.evaluation.inputs import EvaluationInputs
from bergson_core.evaluation.metrics import require_enough_runs, retrieval_metrics
from bergson_core.evaluation.queries import EvaluationQuery
from bergson_core.evaluation.retraining_measures import (
    Retrainer,
    make_trainer,
    measure_datamodelling,
    measure_removal,
)
from bergson_core.evaluation.score_tables import ScoreTable, best_positions, iter_score_tables
from bergson_core.evaluation.step_effects import measure_step_effects
from bergson_core.gradients.processor_fitting import sample_row_numbers
from bergson_core.schemas.evaluation import (
    Effect,
    Evaluation,
    EvaluationSpec,
    Interval,
    Measure,
    Measured,
    Retrieval,
)
from bergson_core.schemas.results import Progress
from bergson_core.utils.progress import ProgressCallback

_DEFAULT_CACHE: Final = ".bergson-evaluation"
_RANKING_DEPTH: Final = 100
"""Number of documents of a ranking that retrieval looks at."""
_STEP_DIRECTIONS: Final[Mapping[Measure, StepDirection]] = {"unlearning": "unlearn", "tail_patch": "learn"}


def evaluate_index(
    index: AttributionIndex,
    queries: Sequence[EvaluationQuery],
    spec: EvaluationSpec | None = None,
    *,
    cache: str | Path | None = None,
    report: ProgressCallback | None = None,
) -> Evaluation:
    """Evaluates an index, and the baselines beside it, with queries whose right answers are known.

    All documents that were not taken down are scored with every query, so that memory grows with their product: 4 bytes
    for each method, query and document.

    Args:
        index: The index to evaluate.
        queries: The queries. The measure `retrieval` needs their gold values.
        spec: What to measure and which baselines to compare with; by default `EvaluationSpec()`: retrieval and
            unlearning, and all baselines.
        cache: Directory for the losses of training runs, from which an interrupted evaluation continues; by default
            `.bergson-evaluation` in the current directory. Only `lds` and `removal` use it.
        report: Called with the progress after each batch of scores, step or training run.

    Returns:
        For each method, the metrics of each measure. The methods are `index`, the baselines, and, if every query has
        gold documents, `gold`: the right documents themselves.

    Raises:
        TooLong: A query has more tokens than the model takes.
        InvalidInput: There are no queries; `retrieval` is measured and a query has no gold documents; `lds` or
            `removal` is measured and `spec.training` does not say how to train, or training fails; there are fewer than
            10 runs for `lds`; or there are more than 2²⁸ scores.
    """
    spec = EvaluationSpec() if spec is None else EvaluationSpec.model_validate(spec)
    report = report or (lambda progress: None)
    inputs = EvaluationInputs.read(index, list(queries), spec.gold)
    if "retrieval" in spec.measures:
        inputs.require_gold(spec.gold)
    retrainer = _make_retrainer(inputs, spec, Path(_DEFAULT_CACHE if cache is None else cache), report)
    tables = dict(iter_score_tables(inputs, spec, report))
    unlearner = _fit_unlearner(inputs, spec)
    results: dict[str, dict[str, Any]] = {method: {} for method in tables}
    for method, field, value in chain(
        _iter_retrieval(inputs, tables) if "retrieval" in spec.measures else (),
        _iter_step_effects(inputs, tables, unlearner, spec, report) if unlearner else (),
        _iter_retraining(tables, retrainer, spec) if retrainer else (),
    ):
        results[method][field] = value
    return Evaluation(
        index=index.name,
        generation=index.manifest.generation,
        documents=len(inputs.documents.ids),
        queries=len(inputs.queries),
        spec=spec,
        learning_rate=unlearner.learning_rate if unlearner else None,
        methods={method: Measured(**fields) for method, fields in results.items()},
    )


def _make_retrainer(
    inputs: EvaluationInputs, spec: EvaluationSpec, cache: Path, report: ProgressCallback
) -> Retrainer | None:
    """Returns what trains the model again, or None if no measure needs it."""
    if "lds" in spec.measures:
        require_enough_runs(spec.training.runs)
    if not {"lds", "removal"} & set(spec.measures):
        return None
    trainer = make_trainer(inputs, spec.training)
    return Retrainer(trainer, inputs.query_tokens, cache, spec.training.processes, report)


def _fit_unlearner(inputs: EvaluationInputs, spec: EvaluationSpec) -> Unlearner | None:
    """Returns what takes steps on documents, or None if no measure needs it."""
    if not _STEP_DIRECTIONS.keys() & set(spec.measures):
        return None
    documents = inputs.documents.tokens
    sample = sample_row_numbers(len(documents), FIT_SAMPLE_SIZE, spec.seed)
    return Unlearner.fit(inputs.index.model, [documents[position] for position in sample], spec.learning_rate)


def _iter_retrieval(
    inputs: EvaluationInputs, tables: Mapping[str, ScoreTable]
) -> Iterator[tuple[str, str, Retrieval]]:
    """Yields (method, field of `Measured`, value) of the measure `retrieval`."""
    ids = inputs.documents.ids
    gold = {query: [ids[position] for position in positions] for query, positions in inputs.gold.items()}
    for method in tables.keys() - {"gold"}:
        best = best_positions(tables[method], _RANKING_DEPTH)
        rankings = {
            query.id: [ids[position] for position in positions]
            for query, positions in zip(inputs.queries, best, strict=True)
        }
        yield method, "retrieval", retrieval_metrics(rankings, gold)


def _iter_step_effects(
    inputs: EvaluationInputs,
    tables: Mapping[str, ScoreTable],
    unlearner: Unlearner,
    spec: EvaluationSpec,
    report: ProgressCallback,
) -> Iterator[tuple[str, str, Effect]]:
    """Yields (method, field of `Measured`, value) of the measures `unlearning` and `tail_patch`."""
    depths = dict.fromkeys(tables, spec.top_k)
    if "gold" in depths:  # no more documents than each query has
        depths["gold"] = min(spec.top_k, *map(len, inputs.gold.values()))
    best = {method: best_positions(table, depths[method]) for method, table in tables.items()}
    for measure, direction in _STEP_DIRECTIONS.items():
        if measure not in spec.measures:
            continue
        effects = measure_step_effects(
            unlearner,
            direction,
            best,
            inputs.documents.tokens,
            inputs.query_tokens,
            seed=spec.seed,
            on_document=lambda done, total, stage=measure: report(
                Progress(stage=stage, done=done, total=total, unit="documents")
            ),
        )
        for method, effect in effects.items():
            yield method, measure, effect


def _iter_retraining(
    tables: Mapping[str, ScoreTable], retrainer: Retrainer, spec: EvaluationSpec
) -> Iterator[tuple[str, str, Interval]]:
    """Yields (method, field of `Measured`, value) of the measures `lds` and `removal`."""
    if "lds" in spec.measures:
        scores = measure_datamodelling(retrainer, tables, spec.training, spec.seed)
        for method, score in scores.items():
            yield method, "lds", score.plain
            yield method, "lds_thresholded", score.thresholded
    if "removal" in spec.measures:
        rises = measure_removal(retrainer, tables, spec.training, spec.seed)
        for method, rise in rises.items():
            yield method, "removal", rise
