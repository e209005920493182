"""`bergson evaluate`: whether an index finds what made the model say it, measured."""

from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from bergson_core.schemas.build import DatasetSpec
from bergson_core.schemas.evaluation import Evaluation, EvaluationSpec, Interval, Measured, TrainingSpec
from bergson_core.schemas.training import TrainingSchedule
from service.cli.support.output import console, help_text, print_message, progress_bar

_TRAINING = "Training again"
_DEFAULT, _TRAIN, _OWN = EvaluationSpec(), TrainingSpec(), TrainingSchedule()


def _training(name: str, help: str) -> typer.models.OptionInfo:
    return typer.Option(f"--{name}", help=help, rich_help_panel=_TRAINING)


def evaluate(
    index: Annotated[Path, typer.Argument(help="Directory of the index.")],
    queries: Annotated[
        str,
        typer.Option(help="Queries with prompt, completion and, for retrieval, the column named by --gold."),
    ],
    split: Annotated[str, typer.Option(help=help_text(DatasetSpec, "split"))] = "train",
    measures: Annotated[
        list[str] | None,
        typer.Option("--measure", help=f"{help_text(EvaluationSpec, 'measures')} [default: the first two]"),
    ] = None,
    baselines: Annotated[
        list[str] | None,
        typer.Option(
            "--baseline", help=f"{', '.join(_DEFAULT.baselines)}. {help_text(EvaluationSpec, 'baselines')}"
        ),
    ] = None,
    gold: Annotated[str, typer.Option(help=help_text(EvaluationSpec, "gold"))] = _DEFAULT.gold,
    top_k: Annotated[int, typer.Option("--top_k", help=help_text(EvaluationSpec, "top_k"))] = _DEFAULT.top_k,
    learning_rate: Annotated[
        float | None, typer.Option("--learning_rate", help=help_text(EvaluationSpec, "learning_rate"))
    ] = None,
    seed: Annotated[int, typer.Option(help=help_text(EvaluationSpec, "seed"))] = _DEFAULT.seed,
    output: Annotated[Path | None, typer.Option(help="JSON file for the figures.")] = None,
    cache: Annotated[Path, typer.Option(help="Directory where the losses of training runs are kept.")] = Path(
        ".bergson-evaluation"
    ),
    train_command: Annotated[
        str | None, _training("train_command", help_text(TrainingSpec, "command"))
    ] = None,
    base_model: Annotated[str | None, _training("base_model", help_text(TrainingSpec, "start"))] = None,
    from_scratch: Annotated[bool, _training("from_scratch", help_text(TrainingSpec, "scratch"))] = False,
    runs: Annotated[int, _training("runs", help_text(TrainingSpec, "runs"))] = _TRAIN.runs,
    share: Annotated[float, _training("share", help_text(TrainingSpec, "share"))] = _TRAIN.share,
    removal_queries: Annotated[
        int, _training("removal_queries", help_text(TrainingSpec, "removal_queries"))
    ] = _TRAIN.removal_queries,
    removal_share: Annotated[
        float, _training("removal_share", help_text(TrainingSpec, "removal_share"))
    ] = _TRAIN.removal_share,
    removal_repeats: Annotated[
        int, _training("removal_repeats", help_text(TrainingSpec, "removal_repeats"))
    ] = _TRAIN.removal_repeats,
    processes: Annotated[
        int, _training("processes", help_text(TrainingSpec, "processes"))
    ] = _TRAIN.processes,
    epochs: Annotated[int, _training("epochs", "Of our own loop, passes over the documents.")] = _OWN.epochs,
    least_steps: Annotated[
        int, _training("least_steps", "Of our own loop, steps at least.")
    ] = _OWN.least_steps,
    batch_size: Annotated[
        int, _training("batch_size", "Of our own loop, documents a step.")
    ] = _OWN.batch_size,
    train_learning_rate: Annotated[
        float, _training("train_learning_rate", "Of our own loop, AdamW's at its highest.")
    ] = _OWN.learning_rate,
    warmup: Annotated[
        float, _training("warmup", "Of our own loop, share of the steps while it rises.")
    ] = _OWN.warmup,
    weight_decay: Annotated[float, _training("weight_decay", "Of our own loop.")] = _OWN.weight_decay,
) -> None:
    """Measure an index beside BM25, plain gradients and representations: retrieval, unlearning, training again."""
    schedule = TrainingSchedule(batch_size, epochs, least_steps, train_learning_rate, warmup, weight_decay)
    training = TrainingSpec(
        command=train_command,
        start=base_model,
        scratch=from_scratch,
        schedule=schedule,
        runs=runs,
        share=share,
        removal_queries=removal_queries,
        removal_share=removal_share,
        removal_repeats=removal_repeats,
        processes=processes,
    )
    spec = EvaluationSpec.model_validate(
        {
            "measures": measures or _DEFAULT.measures,
            "baselines": _DEFAULT.baselines if baselines is None else baselines,
            "gold": gold,
            "top_k": top_k,
            "learning_rate": learning_rate,
            "training": training,
            "seed": seed,
        }
    )
    from bergson_core.attribution.index import AttributionIndex
    from bergson_core.data.dataset import load_dataset_spec
    from bergson_core.evaluation.evaluate import evaluate_index as evaluate_index
    from bergson_core.evaluation.ground_truth import read_queries

    asked = read_queries(load_dataset_spec(DatasetSpec(path=queries, split=split)), gold)
    with progress_bar() as show:
        found = evaluate_index(AttributionIndex.open(index), asked, spec, cache=cache, report=show)
    print_message(
        f"{index}: {found.documents:,} documents, {found.queries:,} queries; 95 % intervals in brackets"
    )
    if found.learning_rate is not None:
        print_message(f"learning rate of a step: {found.learning_rate:.3g}")
    for title, columns in _TABLES.items():
        if (table := _table(title, columns, found)) is not None:
            console.print(table)
    if output is not None:
        output.write_text(found.model_dump_json(indent=2) + "\n", "utf-8")


Show = Callable[[Measured], str]
_TABLES: dict[str, dict[str, Show]] = {
    "retrieval of the documents that state the fact": {
        "MRR": lambda its: _number(its.retrieval and its.retrieval.mrr),
        "Recall@10": lambda its: _number(its.retrieval and its.retrieval.recall_at_10),
        "strict recall@10": lambda its: _number(its.retrieval and its.retrieval.strict_recall_at_10),
    },
    "one step of unlearning on each of the best": {
        "Δ log-probability": lambda its: _interval(its.unlearning and its.unlearning.log_probability),
        "Δ probability": lambda its: _interval(its.unlearning and its.unlearning.probability),
    },
    "one step of learning on each of the best": {
        "Δ log-probability": lambda its: _interval(its.tail_patch and its.tail_patch.log_probability),
        "Δ probability": lambda its: _interval(its.tail_patch and its.tail_patch.probability),
    },
    "trained again": {
        "LDS": lambda its: _interval(its.lds),
        "LDS, thresholded": lambda its: _interval(its.lds_thresholded),
        "Δ loss without the best": lambda its: _interval(its.removal),
    },
}
"""Title → column → what of a method stands in it; a column that no method fills is left out."""


def _table(title: str, columns: dict[str, Show], found: Evaluation) -> Table | None:
    filled = {name: show for name, show in columns.items() if any(map(show, found.methods.values()))}
    if not filled:
        return None
    table = Table(title=f"\n{title}", title_justify="left", box=None, pad_edge=False)
    table.add_column("", min_width=15)
    for name in filled:
        table.add_column(name, justify="right")
    for name, its in found.methods.items():
        if any(cells := [show(its) for show in filled.values()]):
            table.add_row(name, *cells)
    return table


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"


def _interval(value: Interval | None) -> str:
    return "" if value is None else f"{value.mean:+.3f} [{value.low:+.3f}, {value.high:+.3f}]"
