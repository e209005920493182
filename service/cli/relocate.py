"""`bergson relocate` records where the model or the dataset of an index is, after it or the index has been moved."""

from pathlib import Path
from typing import Annotated

import typer

from service.cli.support.common_options import IndexDirectory
from service.cli.support.console import print_message


def relocate(
    index: IndexDirectory,
    model: Annotated[
        Path | None, typer.Option(help="Directory that the model, or the adapters, of the index are in now.")
    ] = None,
    models: Annotated[
        list[Path] | None,
        typer.Option(
            help="Directories that its checkpoints are in now, all of them in their order. Repeatable."
        ),
    ] = None,
    adapter_base: Annotated[
        Path | None,
        typer.Option("--adapter_base", help="Directory of the model that the adapters belong to."),
    ] = None,
    dataset: Annotated[
        Path | None, typer.Option(help="Where the dataset is now. It is recorded only, not read.")
    ] = None,
    optimizer_state: Annotated[
        Path | None,
        typer.Option("--optimizer_state", help="Optimizer checkpoint that the moments were taken from."),
    ] = None,
    reference_model: Annotated[
        Path | None,
        typer.Option(
            "--reference_model", help="Directory that the reference model of preference pairs is in now."
        ),
    ] = None,
) -> None:
    """Record where the model or dataset of an index is now. The model is first compared with the one of the build."""
    from bergson_core.indexing.relocate import relocate_index

    manifest = relocate_index(
        index,
        model=model,
        models=models or (),
        adapter_base=adapter_base,
        dataset=dataset,
        optimizer_state=optimizer_state,
        reference_model=reference_model,
    )
    dataset_path = manifest.spec.dataset.path if manifest.spec.dataset is not None else "given in the request"
    base = f", adapters of {manifest.adapter_base}" if manifest.adapter_base else ""
    models_now = ", ".join(manifest.spec.models or (manifest.spec.model,))
    print_message(f"{index}: model {models_now}{base}, dataset {dataset_path}")
