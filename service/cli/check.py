"""`bergson check`: whether a model's gradients can be trusted in batches and in each precision."""

from typing import Annotated

import typer
from rich.table import Table

from bergson_core.schemas.build import BuildSpec
from service.cli.support.output import console, fail, help_text


def check(
    model: Annotated[str, typer.Option(help=help_text(BuildSpec, "model"))],
    revision: Annotated[str | None, typer.Option(help=help_text(BuildSpec, "revision"))] = None,
) -> None:
    """Compare each document's gradient alone, batched and padded, and recommend a precision."""
    from bergson_core.gradients.precision_check import SAME, check_precision, recommended_dtype

    checks = check_precision(model, revision)
    table = Table(title="least cosine with the document alone", title_justify="left", box=None)
    for name in ("precision", "batched", "padded", "beside float32"):
        table.add_column(name, justify="left" if name == "precision" else "right")
    for one in checks:
        table.add_row(one.dtype, *(f"{value:.5f}" for value in (one.batched, one.padded, one.precision)))
    console.print(table)
    dtype = recommended_dtype(checks)
    if dtype is None:
        fail(f"no precision gives the same gradients (cosine {SAME} or more) alone and in a batch")
    console.print(f"recommended: --dtype {dtype}")
