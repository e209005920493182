"""`bergson score`: a score for every document of an index; `bergson self_influence`: of each document with itself."""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table
from rich.text import Text

from bergson_core.schemas.build import ColumnsSpec, DatasetSpec
from bergson_core.schemas.query import Aggregate, AttributionQuery
from bergson_core.schemas.results import Progress
from service.cli.support.output import console, help_text, print_message, progress_bar

if TYPE_CHECKING:
    import pyarrow as pa

    from bergson_core.attribution.index import AttributionIndex

_MOST_TOTALS = 20
"""Values that are printed."""

IndexPath = Annotated[Path, typer.Argument(help="Directory of the index.")]
Output = Annotated[
    Path, typer.Option(help="File for one row a document, .jsonl or .parquet; written whole or not at all.")
]
TopK = Annotated[
    int | None,
    typer.Option(
        "--top_k", min=1, help="Write the highest scores only, best first; by default all, in order."
    ),
]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace a file that is there already.")]
ProfileName = Annotated[str, typer.Option(help=help_text(AttributionQuery, "profile"))]


def score(
    index: IndexPath,
    queries: Annotated[
        str, typer.Option(help=f"Prompts and completions to score with. {help_text(DatasetSpec, 'path')}")
    ],
    output: Output,
    split: Annotated[str, typer.Option(help=help_text(DatasetSpec, "split"))] = "train",
    prompt_column: Annotated[
        str, typer.Option("--prompt_column", help="Column with the prompts.")
    ] = "prompt",
    completion_column: Annotated[
        str,
        typer.Option(
            "--completion_column", help="Column with the completions; '' where the loss is over the prompts."
        ),
    ] = "completion",
    aggregate: Annotated[
        Aggregate,
        typer.Option(help="A document's score: the mean or max over the queries, or a list of each."),
    ] = "mean",
    threshold: Annotated[
        float,
        typer.Option(
            min=0,
            help="Draw scores towards their query's median by so many times its noise, and take those within as 0: 3 "
            "for sums of scores, which are mostly noise without.",
        ),
    ] = 0.0,
    by: Annotated[
        str | None, typer.Option(help="Metadata column to print the scores' totals by, the largest first.")
    ] = None,
    profile: ProfileName = "default",
    top_k: TopK = None,
    overwrite: Overwrite = False,
) -> None:
    """Score every document of an index with a set of queries: which data would teach a task?"""
    columns = ColumnsSpec(prompt=prompt_column, completion=completion_column or None)
    from bergson_core.attribution.corpus_scores import score_corpus
    from bergson_core.attribution.index import AttributionIndex
    from bergson_core.attribution.score_totals import ScoreTotals
    from bergson_core.data.dataset import load_dataset_spec
    from bergson_core.utils.table_writer import check_output

    check_output(output, overwrite=overwrite)
    asked = load_dataset_spec(DatasetSpec(path=queries, split=split))
    opened = AttributionIndex.open(index)
    totals = ScoreTotals(opened, by) if by is not None else None
    scores = score_corpus(opened, asked, columns, aggregate=aggregate, profile=profile, threshold=threshold)
    if totals is not None:
        scores = totals.add(scores)
    _write(opened, scores, output, top_k, overwrite)
    if totals is not None and by is not None:
        console.print(_totals_table(by, totals.table()))


def self_influence(
    index: IndexPath,
    output: Output,
    profile: ProfileName = "default",
    top_k: TopK = None,
    overwrite: Overwrite = False,
) -> None:
    """Score every document with itself: high for wrong labels and what is like nothing else."""
    from bergson_core.attribution import corpus_scores
    from bergson_core.attribution.index import AttributionIndex
    from bergson_core.utils.table_writer import check_output

    check_output(output, overwrite=overwrite)
    opened = AttributionIndex.open(index)
    _write(opened, corpus_scores.self_influence(opened, profile=profile), output, top_k, overwrite)


def _write(
    index: "AttributionIndex",
    scores: "pa.RecordBatchReader",
    output: Path,
    top_k: int | None,
    overwrite: bool,
) -> None:
    """Writes all scores, or the best of them, with a progress bar."""
    from pyarrow import RecordBatchReader

    from bergson_core.attribution.score_totals import top_documents
    from bergson_core.utils.table_writer import write_table

    with progress_bar() as show:

        def shown() -> Iterator["pa.RecordBatch"]:
            done = 0
            for batch in scores:
                yield batch
                done += batch.num_rows
                show(Progress(stage="score", done=done, total=index.manifest.rows))

        rows = RecordBatchReader.from_batches(scores.schema, shown())
        if top_k is not None:
            rows = top_documents(rows, top_k).to_reader()
        count = write_table(rows, output, overwrite=overwrite)
    print_message(f"{output}: {count:,} of {index.manifest.rows:,} documents")


def _totals_table(column: str, totals: "pa.Table") -> Table:
    table = Table(title=Text(f"totals by {column}"), title_justify="left", box=None, pad_edge=False)
    table.add_column(Text(column), overflow="fold")
    for name in ("documents", "sum", "mean"):
        table.add_column(name, justify="right")
    for row in totals.slice(0, _MOST_TOTALS).to_pylist():
        value = "(none)" if row["value"] is None else str(row["value"])
        table.add_row(Text(value), f"{row['documents']:,}", f"{row['sum']:+.4g}", f"{row['mean']:+.4g}")
    if len(totals) > _MOST_TOTALS:
        table.caption = f"{len(totals) - _MOST_TOTALS:,} more"
    return table
