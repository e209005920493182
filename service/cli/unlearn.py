"""`bergson unlearn` previews what unlearning some documents together would do to a list of queries."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table
from rich.text import Text

from bergson_core.schemas.results import Progress
from bergson_core.schemas.unlearning.results import QueryChange, UnlearnPreview
from bergson_core.schemas.unlearning.spec import DEFAULT_MAX_DOCUMENTS, UnlearnSpec, WatchedQuery
from bergson_core.utils.progress import ProgressCallback
from service.cli.support.common_options import IndexDirectory, parse_filter
from service.cli.support.console import (
    FORMAT_HELP,
    OutputFormat,
    console,
    print_csv,
    print_json,
    print_message,
    progress_bar,
)
from service.cli.support.query_files import naming_lines, read_query_file
from service.cli.support.spec_options import field_help

_CHANGES = ("before", "after", "log_probability", "probability")


def unlearn(
    index: IndexDirectory,
    queries: Annotated[
        Path,
        typer.Option(
            help="A JSON Lines file of what the model should say less often: a prompt and a completion on each line."
        ),
    ],
    ids: Annotated[
        list[str] | None,
        typer.Option("--ids", metavar="ID", help="Id of a document to unlearn. The option may be repeated."),
    ] = None,
    filter: Annotated[
        str | None,
        typer.Option(metavar="JSON", help="Unlearn all documents that meet these conditions on metadata."),
    ] = None,
    control: Annotated[
        Path | None,
        typer.Option(help="A JSON Lines file of queries that have nothing to do with the documents."),
    ] = None,
    learning_rate: Annotated[
        float | None, typer.Option("--learning_rate", help=field_help(UnlearnSpec, "learning_rate"))
    ] = None,
    max_documents: Annotated[
        int,
        typer.Option(
            "--max_documents",
            min=1,
            help="Largest number of documents to unlearn. A service has a limit of its own.",
        ),
    ] = DEFAULT_MAX_DOCUMENTS,
    output_format: Annotated[OutputFormat, typer.Option("--format", help=FORMAT_HELP)] = "table",
    url: Annotated[
        str | None,
        typer.Option(
            help="Address of a running service to ask instead, such as http://127.0.0.1:8000. INDEX is then the name "
            "of one of its indexes."
        ),
    ] = None,
) -> None:
    """Preview what unlearning some documents together would do: what the model says less often, and what else changes.

    The model takes one step of gradient ascent on all of the documents, and is then restored. Nothing is saved.
    """
    files = {
        "queries": read_query_file("--queries", queries),
        "control": None if control is None else read_query_file("--control", control),
    }
    chosen = {"ids": ids or None, "filter": None if filter is None else parse_filter(filter)}
    lists = {field: file and file.queries for field, file in files.items()}
    with naming_lines(**files):
        spec = UnlearnSpec.model_validate({**chosen, **lists, "learning_rate": learning_rate})
    with progress_bar() as show, naming_lines(**files):
        if url is None:
            preview = _ask_directory(index, spec, max_documents, show)
        else:
            preview = _ask_service(url, str(index), spec, show)
    if output_format == "json":
        print_json(preview.model_dump(mode="json"))
    elif output_format == "csv":
        print_csv(["list", "prompt", "completion", *_CHANGES], _rows(spec, preview))
    else:
        _print_preview(spec, preview)


def _ask_directory(
    index: Path, spec: UnlearnSpec, max_documents: int, show: ProgressCallback
) -> UnlearnPreview:
    """Returns the preview of an index on disk, whose model is loaded for it."""
    from bergson_core.attribution.groups.unlearning_preview import run_preview
    from bergson_core.attribution.index import AttributionIndex

    show(Progress(stage="load"))
    return run_preview(AttributionIndex.open(index), spec, max_documents, show)


def _ask_service(url: str, index: str, spec: UnlearnSpec, show: ProgressCallback) -> UnlearnPreview:
    """Returns the preview of the service at `url`, whose job is cancelled if the command is interrupted."""
    from service.client import Client

    with Client(url) as client:
        job = client.preview_unlearning(index, **spec.model_dump(mode="json", exclude_unset=True))
        try:
            record = client.wait(job, on_progress=show)
        except KeyboardInterrupt:
            client.cancel(job)
            raise
    assert record.unlearning is not None
    return record.unlearning


def _rows(spec: UnlearnSpec, preview: UnlearnPreview) -> list[list[Any]]:
    """Returns a row for each query: its list, what is asked, and how it changes."""
    lists: tuple[tuple[str, Sequence[WatchedQuery], list[QueryChange]], ...] = (
        ("queries", spec.queries, preview.queries),
        ("control", spec.control or (), preview.control),
    )
    return [
        [name, query.prompt, query.as_query().explained_text, *(getattr(change, field) for field in _CHANGES)]
        for name, queries, changes in lists
        for query, change in zip(queries, changes, strict=True)
    ]


def _print_preview(spec: UnlearnSpec, preview: UnlearnPreview) -> None:
    left_out = f", {preview.left_out:,} without a gradient were left out" if preview.left_out else ""
    print_message(
        f"{preview.documents:,} documents unlearned together{left_out} (learning rate {preview.learning_rate:.3g}); "
        f"change of their own log-probability: {_number(preview.own_log_probability)} nats"
    )
    table = Table(box=None, pad_edge=False)
    for name in ("change", "before", "after"):
        table.add_column(name, justify="right", no_wrap=True)
    for name in ("", "query"):
        table.add_column(name, overflow="fold")
    for name, prompt, completion, before, after, change, _ in _rows(spec, preview):
        text = Text.assemble(prompt or "", (completion or "a chat", "bold"))
        table.add_row(*map(_number, (change, before, after)), "control" if name == "control" else "", text)
    console.print(table)
    for name, mean in (("queries", preview.mean), ("control queries", preview.control_mean)):
        if name == "queries" or preview.control:
            print_message(f"mean change of the {name}: {_number(mean)} nats")


def _number(value: float | None) -> str:
    return "not finite" if value is None else f"{value:+.4f}"
