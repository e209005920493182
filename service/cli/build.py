"""`bergson <output_path>`: build an index; `bergson estimate`: what that would take."""

from datetime import timedelta
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from bergson_core.schemas.build import BuildSpec
from bergson_core.schemas.results import Estimate
from service.cli.support.output import console, print_message, progress_bar
from service.cli.support.spec_options import ExecutorOption, takes_spec

LOW_COVERAGE = 90
"""Percent of the parameters below which it is said."""


@takes_spec
def build(
    output_path: Annotated[
        Path, typer.Argument(help="Directory of the index; a stopped build resumes there.")
    ],
    spec: BuildSpec,
    executor: ExecutorOption = "local",
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
            f"[yellow]{manifest.skipped:,} documents were skipped: their gradients were not finite[/]"
        )
    _say_coverage(manifest.coverage_percent)


@takes_spec
def estimate(
    spec: BuildSpec,
    json: Annotated[bool, typer.Option("--json", help="Print the estimate as JSON.")] = False,
) -> None:
    """Say what a build would take, by trying a part of it: documents, tokens, disk, memory, time."""
    from bergson_core.indexing.estimate import estimate_build

    with progress_bar() as show:
        found = estimate_build(spec, report=show)
    if json:
        console.print_json(found.model_dump_json())
        return
    console.print(_estimate_table(found))
    if found.looked_at < found.documents:
        console.print(f"extrapolated from {found.looked_at:,} documents")
    _say_coverage(found.coverage_percent)


def _estimate_table(found: Estimate) -> Table:
    disk, device = found.size_bytes, found.peak_device_bytes
    parts = ", ".join(f"{name} {_mib(getattr(disk, name))}" for name in ("rows", "search", "statistics"))
    table = Table(box=None, show_header=False, pad_edge=False)
    for name, value in {
        "documents": f"{found.documents:,}",
        "tokens": f"{found.tokens:,} labelled",
        "dimensions": f"{found.dimensions:,} a document, of {found.modules} modules",
        "coverage": f"{found.coverage_percent:g} % of the parameters",
        "index": f"{_mib(disk.total)}: {parts}",
        "disk": f"{_mib(found.peak_disk_bytes)} at the peak",
        "memory": f"{_mib(found.peak_memory_bytes)} at the peak",
        "GPU": "" if device is None else f"{_mib(device)} at the peak",
        "time": str(timedelta(seconds=round(found.seconds))),
    }.items():
        if value:
            table.add_row(name, value)
    return table


def _mib(count: int) -> str:
    return f"{count / 2**20:,.1f} MiB"


def _say_coverage(percent: float) -> None:
    if percent < LOW_COVERAGE:
        console.print(
            f"[yellow]{100 - percent:.0f} % of the parameters are in no tracked layer[/] "
            "(embeddings, the output head, layers of other kinds): what a document changed there is not seen"
        )
