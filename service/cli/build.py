"""`bergson build` builds an index; `bergson estimate` says beforehand what that would take."""

import json
from datetime import timedelta
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from bergson_core.errors import InvalidInput
from bergson_core.schemas.build import BuildSpec
from bergson_core.schemas.results import Estimate
from service.cli.support.common_options import ExecutorOption
from service.cli.support.console import (
    console,
    print_document_report,
    print_json,
    print_message,
    progress_bar,
)
from service.cli.support.spec_options import OptionOverride, Section, SpecOptions, options_from_specs

LOW_COVERAGE_PERCENT = 90
"""Share of the parameters below which a command prints a warning."""


def _parse_device_map(value: str) -> Any:
    """Returns the value of a JSON object, and any other text as it is."""
    if not value.startswith("{"):
        return value
    try:
        return json.loads(value)
    except ValueError as error:
        raise InvalidInput(f"--device_map: expected a JSON object, {error}") from error


BUILD_OPTIONS = SpecOptions(
    options={
        "model": OptionOverride(optional=True),
        "dataset.path": OptionOverride("dataset"),
        "device_map": OptionOverride(
            type=str | None, parse=_parse_device_map, extra={"metavar": "NAME|JSON"}
        ),
        "search.kind": OptionOverride("search"),
    },
    sections={
        "columns": Section("Columns", suffix="_column"),
        "gradients": Section("Gradients"),
        "scoring": Section("Scoring"),
        "search": Section("Search"),
    },
    omitted=frozenset({"documents"}),
)


@options_from_specs
def build(
    output_path: Annotated[
        Path, typer.Argument(help="Directory of the index; an interrupted build resumes there.")
    ],
    executor: ExecutorOption = "local",
    *,
    spec: Annotated[BuildSpec, BUILD_OPTIONS],
) -> None:
    """Build an index of projected, normalized per-sample gradients."""
    from bergson_core.executors import open_executor
    from bergson_core.indexing.build import build_index

    with progress_bar() as show:
        manifest = build_index(spec, output_path, report=show, executor=open_executor(executor))
    print_message(
        f"{output_path}: {manifest.rows:,} documents, {manifest.tokens:,} labelled tokens, "
        f"{len(manifest.modules)} modules, {manifest.coverage_percent:g} % of the parameters, "
        f"{manifest.total_bytes() / 2**20:,.1f} MiB"
    )
    if manifest.skipped:
        console.print(
            f"[yellow]{manifest.skipped:,} documents were skipped because their gradients were not finite[/]"
        )
    print_document_report(manifest.documents)
    _warn_of_low_coverage(manifest.coverage_percent)


@options_from_specs
def estimate(
    as_json: Annotated[bool, typer.Option("--json", help="Print the estimate as JSON.")] = False,
    *,
    spec: Annotated[BuildSpec, BUILD_OPTIONS],
) -> None:
    """Estimate the documents, tokens, disk, memory and time that a build would take, by running a part of it."""
    from bergson_core.indexing.estimation.estimate import estimate_build

    with progress_bar() as show:
        estimated = estimate_build(spec, report=show)
    if as_json:
        print_json(estimated.model_dump(mode="json"))
        return
    console.print(_estimate_table(estimated))
    if estimated.looked_at < estimated.documents:
        console.print(f"extrapolated from {estimated.looked_at:,} documents")
    _warn_of_low_coverage(estimated.coverage_percent)


def _estimate_table(estimated: Estimate) -> Table:
    sizes, device = estimated.size_bytes, estimated.peak_device_bytes
    parts = ", ".join(f"{name} {_mib(getattr(sizes, name))}" for name in ("rows", "search", "statistics"))
    table = Table(box=None, show_header=False, pad_edge=False)
    for name, value in {
        "documents": f"{estimated.documents:,}",
        "tokens": f"{estimated.tokens:,} labelled tokens",
        "dimensions": f"{estimated.dimensions:,} per document, from {estimated.modules} modules",
        "coverage": f"{estimated.coverage_percent:g} % of the parameters",
        "index": f"{_mib(sizes.total)}: {parts}",
        "disk": f"{_mib(estimated.peak_disk_bytes)} at the peak",
        "memory": f"{_mib(estimated.peak_memory_bytes)} at the peak",
        "GPU": "" if device is None else f"{_mib(device)} at the peak",
        "time": str(timedelta(seconds=round(estimated.seconds))),
    }.items():
        if value:
            table.add_row(name, value)
    return table


def _mib(count: int) -> str:
    return f"{count / 2**20:,.1f} MiB"


def _warn_of_low_coverage(percent: float) -> None:
    if percent < LOW_COVERAGE_PERCENT:
        console.print(
            f"[yellow]{100 - percent:.0f} % of the parameters are in modules that are not tracked[/] "
            "(embeddings, the output head, modules of other kinds): influence through them is not seen"
        )
