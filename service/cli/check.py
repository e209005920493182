"""`bergson check` tells whether a model's gradients can be trusted in batches and in each precision."""

from typing import Annotated

import typer
from rich.table import Table

from bergson_core.schemas.build import BuildSpec
from service.cli.support.console import console, fail
from service.cli.support.spec_options import field_help


def check(
    model: Annotated[str, typer.Option(help=field_help(BuildSpec, "model"))],
    revision: Annotated[str | None, typer.Option(help=field_help(BuildSpec, "revision"))] = None,
) -> None:
    """Compare the gradient of each document alone, batched and padded, and recommend a precision."""
    from bergson_core.gradients.precision_check import MIN_SAME_COSINE, check_precision, recommend_dtype

    checks = check_precision(model, revision)
    title = "smallest cosine with the gradient of the document alone"
    table = Table(title=title, title_justify="left", box=None)
    for name in ("precision", "batched", "padded", "against float32"):
        table.add_column(name, justify="left" if name == "precision" else "right")
    for result in checks:
        cosines = (result.batched, result.padded, result.precision)
        table.add_row(result.dtype, *(f"{cosine:.5f}" for cosine in cosines))
    console.print(table)
    dtype = recommend_dtype(checks)
    if dtype is None:
        fail(
            f"in no precision are the gradients the same (cosine of at least {MIN_SAME_COSINE}) alone and in a batch"
        )
    console.print(f"recommended: --dtype {dtype}")
