"""`bergson list` lists the indexes in a directory, and `bergson info` shows what one holds. Neither loads torch."""

import re
from pathlib import Path
from typing import Annotated, Any, Final, Literal

import typer
from rich.table import Table
from rich.text import Text

from bergson_core.errors import InvalidInput
from bergson_core.schemas.base import Spec
from bergson_core.schemas.build import BuildSpec
from bergson_core.storage.layout import BUILD_STAMP_FILE
from bergson_core.storage.manifest import MANIFEST_FILE, iter_published_indexes, read_manifest
from service.cli.support.common_options import IndexDirectory
from service.cli.support.console import (
    FORMAT_HELP,
    OutputFormat,
    console,
    print_csv,
    print_json,
    print_message,
    print_warning,
)
from service.index_schemas import IndexDetail, IndexSummary
from service.indexes.catalog import read_index_detail

_LIST_COLUMNS: Final = ("name", "state", "rows", "generation", "bytes", "created_at", "model")


def list_indexes(
    directory: Annotated[
        Path,
        typer.Argument(metavar="[DIR]", help="Directory of indexes, or a data directory of the service."),
    ] = Path(),
    output_format: Annotated[OutputFormat, typer.Option("--format", help=FORMAT_HELP)] = "table",
) -> None:
    """List the indexes in a directory: the current one, or DIR."""
    details = _read_directory(directory)
    if output_format != "json":  # which has the reason
        for detail in details:
            if detail.error is not None:
                print_warning(f"{detail.name}: {detail.error.detail}")
    if output_format == "json":
        fields = set(IndexSummary.model_fields)
        print_json([detail.model_dump(include=fields, mode="json") for detail in details])
    elif output_format == "csv":
        print_csv(_LIST_COLUMNS, map(_list_cells, details))
    elif details:
        console.print(_list_table(details))
    else:
        print_message(f"no indexes in {directory}")


def info(
    index: IndexDirectory,
    output_format: Annotated[
        Literal["table", "json"],
        typer.Option(
            "--format", help="How to print it: a table for people, or JSON as `GET /index/NAME` returns it."
        ),
    ] = "table",
) -> None:
    """Show what an index holds and how it was built."""
    read_manifest(index)  # raises where there is no index that can be read
    path = index.resolve()
    detail = read_index_detail(path.parent, path.name)
    if output_format == "json":
        print_json(detail.model_dump(mode="json"))
    else:
        console.print(_info_table(path, detail))


def _read_directory(directory: Path) -> list[IndexDetail]:
    """Returns the indexes in a directory, or in the directory `indexes` below a data directory of the service."""
    if not directory.is_dir():
        raise InvalidInput(f"{directory} is not a directory; expected a directory of indexes")
    directory = directory.resolve()
    if (directory / MANIFEST_FILE).is_file():
        return [read_index_detail(directory.parent, directory.name)]
    for root in (directory, directory / "indexes"):
        names = [name for name, _ in iter_published_indexes(root)]
        details = [read_index_detail(root, name) for name in names]
        stamps = root.glob(f"*/{BUILD_STAMP_FILE}")
        unfinished = [stamp.parent.name for stamp in stamps if stamp.parent.name not in names]
        details += [IndexDetail(name=name, state="building") for name in unfinished]
        if details:
            return sorted(details, key=lambda detail: detail.name)
    return []


def _list_cells(detail: IndexDetail) -> tuple[Any, ...]:
    size = detail.size_bytes and detail.size_bytes.total
    return (
        detail.name,
        _state(detail),
        detail.rows,
        detail.generation,
        size,
        detail.created_at,
        detail.model,
    )


def _state(detail: IndexDetail) -> str:
    return "unfinished" if detail.state == "building" else detail.state


def _list_table(details: list[IndexDetail]) -> Table:
    table = Table(box=None, pad_edge=False)
    for title in ("name", "state", "documents", "generation", "MiB", "created", "model"):
        is_number = title in ("documents", "generation", "MiB")
        table.add_column(title, justify="right" if is_number else "left", overflow="fold")
    for name, state, rows, generation, size, created_at, model in map(_list_cells, details):
        numbers = ["" if rows is None else f"{rows:,}", str(generation or "")]
        numbers.append("" if size is None else f"{size / 2**20:,.1f}")
        texts = (name, state, *numbers, (created_at or "")[:10], model or "")
        table.add_row(*map(Text, texts))
    return table


def _info_table(path: Path, detail: IndexDetail) -> Table:
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    spec, sizes, search = detail.spec, detail.size_bytes, detail.search
    assert spec is not None and sizes is not None and search is not None
    for name, value in {
        "index": str(path),
        "documents": f"{detail.rows:,}, {detail.taken_down:,} taken down",
        "tokens": f"{detail.tokens:,} labelled tokens",
        "skipped": f"{detail.skipped:,} documents" if detail.skipped else "",
        "generation": f"{detail.generation}, of {detail.created_at}",
        "model": f"{_describe_model(spec.model)}, {spec.dtype}",
        "checkpoints": ", ".join(map(_describe_model, spec.models)),
        "model sha256": detail.model_sha256,
        "reference": spec.reference_model or "",
        "dataset": _describe_dataset(spec),
        "columns": _describe_settings(spec.columns),
        "gradients": _describe_settings(spec.gradients),
        "scoring": _describe_settings(spec.scoring),
        "modules": f"{detail.modules}, {detail.coverage_percent:g} % of the parameters",
        "dimensions": f"{detail.dimensions:,} per document",
        "search": f"{search.kind}, {_describe_recall(search.recall_at_10)}",
        "profiles": ", ".join(detail.profiles),
        "size": f"{sizes.total / 2**20:,.1f} MiB",
    }.items():
        if value:
            table.add_row(name, Text(value))
    return table


def _describe_recall(recall: float | None) -> str:
    """Returns the measured recall, or that there is none and what follows from that."""
    if recall is None:
        return "not measured: its recall is not known, and answers have no notice"
    return f"recall@10 {recall:.3f}"


def _describe_settings(spec: Spec) -> str:
    """Returns the settings that differ from their defaults, as `name value`."""
    changed = [
        f"{name} {', '.join(map(str, value)) if isinstance(value, tuple) else value}"
        for name, value in spec
        if value != type(spec).model_fields[name].get_default(call_default_factory=True)
    ]
    return "; ".join(changed) or "the defaults"


def _describe_dataset(spec: BuildSpec) -> str:
    """Returns the dataset, or that there is none: a worker keeps documents of a request in a file, during the build."""
    if spec.dataset is None or re.search(r"/uploads/[^/]+-[0-9a-f]{64}\.jsonl$", spec.dataset.path):
        return "given in the request"
    return _describe_settings(spec.dataset)


def _describe_model(name: str) -> str:
    is_gone = name.startswith("/") and not Path(name).is_dir()
    note = " (not there: bergson relocate records where it is now)" if is_gone else ""
    return f"{name}{note}"
