"""`bergson evaluate` measures whether an index finds the documents that made the model say a completion."""

from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from bergson_core.schemas.evaluation import Evaluation, EvaluationSpec, Interval, Measured
from bergson_core.schemas.source import DatasetSpec
from bergson_core.utils.atomic_files import write_durably
from service.cli.support.common_options import IndexDirectory, dataset_options
from service.cli.support.console import console, print_message, progress_bar
from service.cli.support.spec_options import OptionOverride, Section, SpecOptions, options_from_specs

EVALUATION_OPTIONS = SpecOptions(
    options={
        "measures": OptionOverride("measure"),
        "baselines": OptionOverride("baseline"),
        "training.command": OptionOverride("train_command"),
        "training.start": OptionOverride("base_model"),
        "training.scratch": OptionOverride("from_scratch"),
        "training.schedule.batch_size": OptionOverride(
            help="Documents per step of the built-in training loop."
        ),
        "training.schedule.epochs": OptionOverride(
            help="Passes of the built-in training loop over the documents."
        ),
        "training.schedule.least_steps": OptionOverride(
            "least_steps", help="Smallest number of steps of the built-in training loop."
        ),
        "training.schedule.learning_rate": OptionOverride(
            "train_learning_rate", help="Highest learning rate of AdamW in the built-in training loop."
        ),
        "training.schedule.warmup": OptionOverride(
            help="Share of the steps of the built-in training loop over which the learning rate rises."
        ),
        "training.schedule.weight_decay": OptionOverride(
            help="Weight decay of AdamW in the built-in training loop."
        ),
    },
    sections={"training": Section("Training again")},
    omitted=frozenset({"training.schedule.threads"}),
)


@options_from_specs
def evaluate(
    index: IndexDirectory,
    queries: Annotated[
        DatasetSpec,
        dataset_options(
            "queries", "Queries with prompt, completion and, for retrieval, the column named by --gold."
        ),
    ],
    spec: Annotated[EvaluationSpec, EVALUATION_OPTIONS],
    output: Annotated[Path | None, typer.Option(help="JSON file for the figures.")] = None,
    cache: Annotated[Path, typer.Option(help="Directory that keeps the losses of training runs.")] = Path(
        ".bergson-evaluation"
    ),
) -> None:
    """Measure an index against BM25, plain gradients and representations: retrieval, unlearning, retraining."""
    from bergson_core.attribution.index import AttributionIndex
    from bergson_core.data.dataset import load_dataset_spec
    from bergson_core.evaluation.evaluate import evaluate_index
    from bergson_core.evaluation.queries import query_columns, read_queries

    evaluation_queries = read_queries(load_dataset_spec(queries, *query_columns(spec.gold)), spec.gold)
    with progress_bar() as show:
        evaluation = evaluate_index(
            AttributionIndex.open(index), evaluation_queries, spec, cache=cache, report=show
        )
    print_message(
        f"{index}: {evaluation.documents:,} documents, {evaluation.queries:,} queries; "
        "95 % intervals in brackets"
    )
    if evaluation.learning_rate is not None:
        print_message(f"learning rate of one step: {evaluation.learning_rate:.3g}")
    for title, columns in _TABLES.items():
        if (table := _make_table(title, columns, evaluation)) is not None:
            console.print(table)
    if output is not None:
        write_durably(output, evaluation.model_dump_json(indent=2).encode() + b"\n")


ShowMethod = Callable[[Measured], str]
_TABLES: dict[str, dict[str, ShowMethod]] = {
    "retrieval of the documents that state the fact": {
        "MRR": lambda method: _number(method.retrieval and method.retrieval.mrr),
        "Recall@10": lambda method: _number(method.retrieval and method.retrieval.recall_at_10),
        "strict recall@10": lambda method: _number(method.retrieval and method.retrieval.strict_recall_at_10),
    },
    "after one unlearning step on each top document": {
        "Δ log-probability": lambda method: _interval(
            method.unlearning and method.unlearning.log_probability
        ),
        "Δ probability": lambda method: _interval(method.unlearning and method.unlearning.probability),
    },
    "after one training step on each top document": {
        "Δ log-probability": lambda method: _interval(
            method.tail_patch and method.tail_patch.log_probability
        ),
        "Δ probability": lambda method: _interval(method.tail_patch and method.tail_patch.probability),
    },
    "after retraining on parts of the documents": {
        "LDS": lambda method: _interval(method.lds),
        "LDS, thresholded": lambda method: _interval(method.lds_thresholded),
        "Δ loss without the top documents": lambda method: _interval(method.removal),
    },
}
"""The text of each cell by the table's title and the column's name. A column that no method fills is left out."""


def _make_table(title: str, columns: dict[str, ShowMethod], evaluation: Evaluation) -> Table | None:
    filled = {name: show for name, show in columns.items() if any(map(show, evaluation.methods.values()))}
    if not filled:
        return None
    table = Table(title=f"\n{title}", title_justify="left", box=None, pad_edge=False)
    table.add_column("", min_width=15)
    for name in filled:
        table.add_column(name, justify="right")
    for name, method in evaluation.methods.items():
        if any(cells := [show(method) for show in filled.values()]):
            table.add_row(name, *cells)
    return table


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"


def _interval(value: Interval | None) -> str:
    return "" if value is None else f"{value.mean:+.3f} [{value.low:+.3f}, {value.high:+.3f}]"
