"""`bergson canary`: a fixed set of queries, asked again and again: does the service still find, and how fast?"""

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from bergson_core.errors import BergsonError, InvalidInput
from bergson_core.schemas.build import DatasetSpec
from bergson_core.schemas.evaluation import EvaluationSpec
from service.cli.serve import DataDir, set_environment
from service.cli.support.output import errors, fail, help_text, print_message
from service.client import Client
from service.indexes.canary_log import CanaryRun, append_run
from service.schemas import AttributeResponse
from service.settings import ClientSettings

if TYPE_CHECKING:
    from bergson_core.evaluation.queries import EvaluationQuery

Floor = Annotated[float | None, typer.Option(min=0, max=1, help="Least that counts as well; else status 1.")]


def canary(
    index: Annotated[str, typer.Argument(help="Name of the index.")],
    queries: Annotated[
        str,
        typer.Option(help="Queries with prompt, completion and, for the MRR, the column named by --gold."),
    ],
    split: Annotated[str, typer.Option(help=help_text(DatasetSpec, "split"))] = "train",
    gold: Annotated[str, typer.Option(help=help_text(EvaluationSpec, "gold"))] = EvaluationSpec().gold,
    url: Annotated[str | None, typer.Option(help=help_text(ClientSettings, "url"))] = None,
    every: Annotated[
        float | None, typer.Option(min=1, help="Seconds from run to run; a single run where it is not given.")
    ] = None,
    min_mrr: Floor = None,
    min_recall: Floor = None,
    data_dir: DataDir = None,
) -> None:
    """Ask a running service a fixed set of queries: MRR, recall of the search and latency, for `GET /metrics`."""
    from bergson_core.data.dataset import load_dataset_spec
    from bergson_core.evaluation.ground_truth import read_queries

    settings = set_environment(data_dir)
    asked = read_queries(load_dataset_spec(DatasetSpec(path=queries, split=split)), gold)
    if not asked:
        raise InvalidInput(f"{queries} has no queries; expected at least one")
    while True:
        try:
            run = _run(index, asked, gold, settings.indexes_dir / index, url)
            print_message(f"{append_run(settings, run)}: {run.model_dump_json()}")
            wrong = _below(run, min_mrr, min_recall)
        except BergsonError as error:
            wrong = str(error)
        if every is None and wrong:
            fail(wrong)
        if wrong:
            errors.print(wrong, markup=False, soft_wrap=True)
        if every is None:
            return
        time.sleep(every)


def _below(run: CanaryRun, min_mrr: float | None, min_recall: float | None) -> str:
    """What is less than was asked for; what was not measured is, too."""
    floors = {"mrr": min_mrr, "recall_at_10": min_recall}
    found = {name: getattr(run, name) for name in floors}
    return "; ".join(
        f"{run.index}: {name} is {found[name]}, expected {least} at least"
        for name, least in floors.items()
        if least is not None and (found[name] is None or found[name] < least)
    )


def _run(name: str, queries: "list[EvaluationQuery]", gold: str, path: Path, url: str | None) -> CanaryRun:
    import numpy as np

    from bergson_core.attribution.index import AttributionIndex
    from bergson_core.evaluation.service_recall import recall_of_answers

    at, seconds, answers = time.time(), list[float](), list[AttributeResponse]()
    with Client(url, headers={"Cache-Control": "no-cache"}) as client:
        for query in queries:
            started = time.perf_counter()
            found = client.attribute(name, query.prompt, query.completion, top_k=10, include=["metadata"])
            answers.append(found)
            seconds.append(time.perf_counter() - started)
    opened = AttributionIndex.open(path)
    same = {answer.generation for answer in answers} == {opened.manifest.generation}
    ids = [[row.id for row in answer.results or ()] for answer in answers]
    return CanaryRun(
        index=name,
        generation=opened.manifest.generation,
        at=at,
        queries=len(queries),
        mrr=_mrr(queries, answers, gold, opened.manifest.spec.columns.metadata),
        recall_at_10=recall_of_answers(opened, queries, ids) if same else None,
        latency_p50_s=float(np.quantile(seconds, 0.5)),
        latency_p95_s=float(np.quantile(seconds, 0.95)),
    )


def _mrr(
    queries: "list[EvaluationQuery]", answers: list[AttributeResponse], gold: str, columns: tuple[str, ...]
) -> float | None:
    if not any(query.fact for query in queries):
        return None
    if gold not in columns:
        raise InvalidInput(
            f"the index has no metadata column {gold!r} to tell right documents by; it has "
            f"{', '.join(columns) or 'none'}"
        )
    ranks = [
        next(
            (row.rank for row in answer.results or () if str((row.metadata or {}).get(gold)) == query.fact),
            None,
        )
        for query, answer in zip(queries, answers, strict=True)
    ]
    return sum(1 / rank for rank in ranks if rank) / len(ranks)
