"""`bergson score` scores every document against a set of queries; `bergson self_influence` scores it against itself."""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer
from pydantic import Field
from rich.table import Table
from rich.text import Text

from bergson_core.errors import InvalidInput
from bergson_core.schemas.query import Aggregate
from bergson_core.schemas.results import Progress
from bergson_core.schemas.source import ColumnsSpec, DatasetSpec
from bergson_core.schemas.totals.spec import THRESHOLD_OF_SUMS
from service.cli.support.common_options import (
    PROFILE_HELP,
    EscapeFormulasOption,
    IndexDirectory,
    OverwriteOption,
    dataset_options,
    parse_between,
    require_output,
)
from service.cli.support.console import console, print_message, progress_bar
from service.cli.support.spec_options import options_from_specs

if TYPE_CHECKING:
    import pyarrow as pa
    from datasets import Dataset

    from bergson_core.attribution.index import AttributionIndex

_MAX_PRINTED_TOTALS: Final = 20
_PROMPT_COLUMN: Final = "prompt"
_COMPLETION_COLUMN: Final = "completion"

Output = Annotated[
    Path,
    typer.Option(
        help="File of one row per document: .jsonl, .csv or .parquet; or of the scores alone, in the order of the "
        "corpus: .json or .npy. It is written whole or not at all."
    ),
]
TopK = Annotated[
    int | None,
    typer.Option(
        "--top_k",
        min=1,
        help="Write only this many documents, those with the highest scores, best first. By default all are written, "
        "in the order of the corpus.",
    ),
]
ProfileName = Annotated[str, typer.Option(help=PROFILE_HELP)]


class _Queries(DatasetSpec):
    """A dataset of queries; without a path there is none."""

    path: str | None = Field(default=None, max_length=4096)  # pyright: ignore[reportIncompatibleVariableOverride]
    """Hub id, file, directory, or a pattern of files such as `data/*.jsonl`."""


@options_from_specs
def score(
    index: IndexDirectory,
    queries: Annotated[_Queries, dataset_options("queries", "Prompts and completions to score against.")],
    output: Output,
    behaviour: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="A behaviour of the index to score against, instead of --queries."),
    ] = None,
    instead_of_behaviour: Annotated[
        str | None, typer.Option(metavar="NAME", help="Another behaviour, whose scores are subtracted.")
    ] = None,
    prompt_column: Annotated[
        str, typer.Option("--prompt_column", help="Column with the prompts.")
    ] = _PROMPT_COLUMN,
    completion_column: Annotated[
        str,
        typer.Option(
            "--completion_column",
            help="Column with the completions, or '' to take the loss of the prompts.",
        ),
    ] = _COMPLETION_COLUMN,
    messages_column: Annotated[
        str | None,
        typer.Option(
            "--messages_column",
            help="Column with chats, instead of prompts and completions: lists of messages with role and content, or "
            "such lists as JSON text. The loss is that of the assistant's messages.",
        ),
    ] = None,
    aggregate: Annotated[
        Aggregate,
        typer.Option(
            help="How the scores of a document are combined: the mean or max over the queries, or each in a list."
        ),
    ] = "mean",
    threshold: Annotated[
        float | None,
        typer.Option(
            min=0,
            help="Move the scores of each query towards their median by this many times the query's noise, and set "
            "scores within this distance to 0. The default is 3 with --by, because sums of scores are mostly noise "
            "otherwise, and 0 without --by.",
        ),
    ] = None,
    by: Annotated[
        str | None,
        typer.Option(
            help="Metadata column. The sum of the scores is printed for each of its values, the largest first."
        ),
    ] = None,
    between: Annotated[
        str | None,
        typer.Option(
            metavar="EARLIER:LATER",
            help="Two checkpoints of an index, as in bergson query: the scores say what taught the later one.",
        ),
    ] = None,
    profile: ProfileName = "default",
    top_k: TopK = None,
    overwrite: OverwriteOption = False,
    escape_formulas: EscapeFormulasOption = False,
) -> None:
    """Score every document of an index against a set of queries: which data would teach a task?"""
    from bergson_core.attribution.corpus_scores import score_behaviour, score_corpus
    from bergson_core.attribution.index import AttributionIndex
    from bergson_core.attribution.score_totals import ScoreTotals

    columns = _query_columns(prompt_column, completion_column, messages_column)
    _require_one_source(queries, behaviour, instead_of_behaviour, aggregate)
    _require_output(output, top_k, overwrite)
    dataset = None if behaviour is not None else _load_queries(queries, columns)
    opened = AttributionIndex.open(index)
    totals = ScoreTotals(opened, by) if by is not None else None
    if threshold is None:
        threshold = 0.0 if totals is None else THRESHOLD_OF_SUMS
    if behaviour is not None:
        if between is not None:
            raise InvalidInput(
                "a behaviour is stored for all checkpoints: expected no --between with --behaviour"
            )
        scores = score_behaviour(
            opened, behaviour, instead_of=instead_of_behaviour, profile=profile, threshold=threshold
        )
    else:
        assert dataset is not None
        scores = score_corpus(
            opened,
            dataset,
            columns,
            aggregate=aggregate,
            profile=profile,
            threshold=threshold,
            between=None if between is None else parse_between(between),
        )
    if totals is not None:
        scores = totals.add(scores)
    _write_scores(opened, scores, output, top_k, overwrite, escape_formulas)
    if totals is not None and by is not None:
        console.print(_totals_table(by, totals.table()))


def self_influence(
    index: IndexDirectory,
    output: Output,
    profile: ProfileName = "default",
    top_k: TopK = None,
    overwrite: OverwriteOption = False,
    escape_formulas: EscapeFormulasOption = False,
) -> None:
    """Score every document against itself: wrong labels and documents like no other score high."""
    from bergson_core.attribution.corpus_scores import score_self_influence
    from bergson_core.attribution.index import AttributionIndex

    _require_output(output, top_k, overwrite)
    opened = AttributionIndex.open(index)
    scores = score_self_influence(opened, profile=profile)
    _write_scores(opened, scores, output, top_k, overwrite, escape_formulas)


def _require_one_source(
    queries: _Queries, behaviour: str | None, instead_of_behaviour: str | None, aggregate: Aggregate
) -> None:
    if (queries.path is None) == (behaviour is None):
        given = "neither" if behaviour is None else "both"
        raise InvalidInput(f"expected either --queries or --behaviour, got {given}")
    if instead_of_behaviour is not None and behaviour is None:
        raise InvalidInput("--instead_of_behaviour is subtracted from a behaviour: expected also --behaviour")
    if behaviour is not None and aggregate != "mean":
        raise InvalidInput(
            f"a behaviour is the mean of its queries: expected no --aggregate, got {aggregate}"
        )


def _load_queries(queries: _Queries, columns: ColumnsSpec) -> "Dataset":
    from bergson_core.attribution.query_weights import INSTEAD_OF_COLUMN
    from bergson_core.data.dataset import load_dataset_spec

    optional = [] if columns.completion is None else [INSTEAD_OF_COLUMN]
    dataset = DatasetSpec.model_validate(queries.model_dump(exclude_unset=True))
    return load_dataset_spec(dataset, columns.column_names(), optional)


def _query_columns(prompt: str, completion: str, messages: str | None) -> ColumnsSpec:
    if messages is None:
        return ColumnsSpec(prompt=prompt, completion=completion or None)
    if (prompt, completion) != (_PROMPT_COLUMN, _COMPLETION_COLUMN):
        raise InvalidInput(
            "expected --messages_column, or --prompt_column and --completion_column, not both: "
            "a chat contains its prompt"
        )
    return ColumnsSpec(messages=messages)


def _require_output(output: Path, top_k: int | None, overwrite: bool) -> None:
    """Checks that the scores can be written, before the index is opened."""
    from bergson_core.utils.table_writer import ARRAY_SUFFIXES, TABLE_SUFFIXES

    require_output(output, (*TABLE_SUFFIXES, *ARRAY_SUFFIXES), overwrite=overwrite)
    if top_k is not None and output.suffix in ARRAY_SUFFIXES:
        raise InvalidInput(
            f"{output.name} has no ids to name the best {top_k:,}; expected a file with ids: "
            f"{', '.join(TABLE_SUFFIXES)}"
        )


def _write_scores(
    index: "AttributionIndex",
    scores: "pa.RecordBatchReader",
    output: Path,
    top_k: int | None,
    overwrite: bool,
    escape_formulas: bool,
) -> None:
    """Writes all scores, or the `top_k` highest, while a bar shows the progress."""
    from pyarrow import RecordBatchReader

    from bergson_core.attribution.corpus_scores import write_score_array
    from bergson_core.attribution.score_totals import top_documents
    from bergson_core.utils.table_writer import ARRAY_SUFFIXES, write_table

    with progress_bar() as show:

        def iter_with_progress() -> Iterator["pa.RecordBatch"]:
            done = 0
            for batch in scores:
                yield batch
                done += batch.num_rows
                show(Progress(stage="score", done=done, total=index.manifest.rows))

        rows = RecordBatchReader.from_batches(scores.schema, iter_with_progress())
        if top_k is not None:
            rows = top_documents(rows, top_k).to_reader()
        if output.suffix in ARRAY_SUFFIXES:
            count = write_score_array(index, rows, output, overwrite=overwrite)
        else:
            count = write_table(rows, output, overwrite=overwrite, escape_formulas=escape_formulas)
    print_message(f"{output}: {count:,} of {index.manifest.rows:,} documents")


def _totals_table(column: str, totals: "pa.Table") -> Table:
    table = Table(title=Text(f"totals by {column}"), title_justify="left", box=None, pad_edge=False)
    table.add_column(Text(column), overflow="fold")
    for name in ("documents", "sum", "mean"):
        table.add_column(name, justify="right")
    for row in totals.slice(0, _MAX_PRINTED_TOTALS).to_pylist():
        value = "(none)" if row["value"] is None else str(row["value"])
        table.add_row(Text(value), f"{row['documents']:,}", f"{row['sum']:+.4g}", f"{row['mean']:+.4g}")
    if len(totals) > _MAX_PRINTED_TOTALS:
        table.caption = f"{len(totals) - _MAX_PRINTED_TOTALS:,} more"
    return table
