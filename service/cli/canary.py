"""`bergson canary` sends a fixed set of queries to a running service and records how well and how fast it answers.

Each run is appended to the canary log of the index, whose last run `GET /metrics` exports.
"""

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from bergson_core.errors import BergsonError, InvalidInput
from bergson_core.schemas.evaluation import EvaluationSpec
from bergson_core.schemas.source import DatasetSpec
from service.cli.support.common_options import dataset_options
from service.cli.support.console import error_console, fail, print_message
from service.cli.support.service_options import DataDir, apply_settings
from service.cli.support.spec_options import field_help, options_from_specs
from service.client import Client
from service.indexes.canary_log import CanaryRun, append_run
from service.schemas import AttributeResponse

if TYPE_CHECKING:
    from bergson_core.evaluation.queries import EvaluationQuery


def _floor_option(figure: str) -> Any:
    help_text = f"Smallest {figure} that is acceptable. A single run below it ends with status 1."
    return typer.Option(min=0, max=1, help=help_text)


@options_from_specs
def canary(
    index: Annotated[str, typer.Argument(help="Name of the index.")],
    queries: Annotated[
        DatasetSpec,
        dataset_options(
            "queries", "Queries with prompt, completion and, for the MRR, the column named by --gold."
        ),
    ],
    gold: Annotated[str, typer.Option(help=field_help(EvaluationSpec, "gold"))] = EvaluationSpec().gold,
    url: Annotated[
        str | None, typer.Option(help="Address of the service. By default that of the setting BERGSON_URL.")
    ] = None,
    every: Annotated[
        float | None, typer.Option(min=1, help="Seconds between runs. Without it, there is a single run.")
    ] = None,
    min_mrr: Annotated[float | None, _floor_option("MRR")] = None,
    min_recall: Annotated[float | None, _floor_option("recall of the search")] = None,
    data_dir: DataDir = None,
) -> None:
    """Send a fixed set of queries to a running service and log MRR, search recall and latency for `GET /metrics`."""
    from bergson_core.data.dataset import load_dataset_spec
    from bergson_core.evaluation.queries import query_columns, read_queries

    settings = apply_settings(data_dir)
    canary_queries = read_queries(load_dataset_spec(queries, *query_columns(gold)), gold)
    if not canary_queries:
        raise InvalidInput(f"{queries.path} has no queries; expected at least one")
    while True:
        try:
            run = _run_canary(index, canary_queries, gold, settings.indexes_dir / index, url)
            print_message(f"{append_run(settings, run)}: {run.model_dump_json()}")
            problem = describe_shortfalls(run, min_mrr, min_recall)
        except BergsonError as error:
            problem = str(error)
        if every is None and problem:
            fail(problem)
        if problem:
            error_console.print(problem, markup=False, soft_wrap=True)
        if every is None:
            return
        time.sleep(every)


def describe_shortfalls(run: CanaryRun, min_mrr: float | None, min_recall: float | None) -> str:
    """Returns a text that names each figure below its floor, or an empty one if there is none.

    A figure that was not measured counts as below its floor.
    """
    floors = {"mrr": min_mrr, "recall_at_10": min_recall}
    figures = {name: getattr(run, name) for name in floors}
    return "; ".join(
        f"{run.index}: {name} is {figures[name]}, expected at least {floor}"
        for name, floor in floors.items()
        if floor is not None and (figures[name] is None or figures[name] < floor)
    )


def _run_canary(
    name: str, queries: "list[EvaluationQuery]", gold: str, directory: Path, url: str | None
) -> CanaryRun:
    """Sends the queries one after the other, bypassing the answer cache, and measures the answers."""
    import numpy as np

    from bergson_core.attribution.index import AttributionIndex
    from bergson_core.evaluation.answer_recall import recall_of_answers

    started_at, seconds, answers = time.time(), list[float](), list[AttributeResponse]()
    with Client(url, headers={"Cache-Control": "no-cache"}) as client:
        for query in queries:
            started = time.perf_counter()
            answer = client.attribute(name, query.prompt, query.completion, top_k=10, include=["metadata"])
            answers.append(answer)
            seconds.append(time.perf_counter() - started)
    opened = AttributionIndex.open(directory)
    # Answers of another generation than the one on disk cannot be compared with its exact scores.
    comparable = {answer.generation for answer in answers} == {opened.manifest.generation}
    ids = [[row.id for row in answer.results or ()] for answer in answers]
    return CanaryRun(
        index=name,
        generation=opened.manifest.generation,
        at=started_at,
        queries=len(queries),
        mrr=_mean_reciprocal_rank(queries, answers, gold, opened.manifest.spec.columns.metadata),
        recall_at_10=recall_of_answers(opened, queries, ids) if comparable else None,
        latency_p50_s=float(np.quantile(seconds, 0.5)),
        latency_p95_s=float(np.quantile(seconds, 0.95)),
    )


def _mean_reciprocal_rank(
    queries: "list[EvaluationQuery]", answers: list[AttributeResponse], gold: str, columns: tuple[str, ...]
) -> float | None:
    """Returns the mean of 1 / rank of the first gold document, or None if the queries name no gold documents."""
    if not any(query.gold for query in queries):
        return None
    if gold not in columns:
        raise InvalidInput(
            f"the index has no metadata column {gold!r} to recognise gold documents by; it has "
            f"{', '.join(columns) or 'none'}"
        )
    ranks = [
        next(
            (row.rank for row in answer.results or () if str((row.metadata or {}).get(gold)) == query.gold),
            None,
        )
        for query, answer in zip(queries, answers, strict=True)
    ]
    return sum(1 / rank for rank in ranks if rank) / len(ranks)
