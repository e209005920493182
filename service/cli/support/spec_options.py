"""The options that say what to build, declared once for the commands that take them: parameters of `build_spec`."""

from collections.abc import Callable
from functools import wraps
from inspect import Parameter, Signature, signature
from typing import Annotated, Any, Literal

import typer

from bergson_core.schemas.build import (
    BuildSpec,
    ColumnsSpec,
    DatasetSpec,
    Dtype,
    ExecutorName,
    FitLabels,
    GradientSpec,
    Loss,
    Normalize,
    Normalizer,
    Projection,
    RowKind,
    ScoringSpec,
    SearchSpec,
)
from service.cli.support.output import help_text

_COLUMNS = "Columns"
_GRADIENTS = "Gradients"
_SCORING = "Scoring"
_SEARCH = "Search"

ExecutorOption = Annotated[
    ExecutorName,
    typer.Option(
        help="Where shards are made or searched: in this process, or on the machines of a Ray cluster."
    ),
]


def _option(name: str, spec: Any, field: str, panel: str | None = None) -> Any:
    """An option that is explained by the spec's docstring."""
    return typer.Option(f"--{name}", help=help_text(spec, field), rich_help_panel=panel)


def build_spec(
    model: Annotated[str, _option("model", BuildSpec, "model")],
    dataset: Annotated[str, _option("dataset", DatasetSpec, "path")],
    revision: Annotated[str | None, _option("revision", BuildSpec, "revision")] = None,
    dtype: Annotated[Dtype, _option("dtype", BuildSpec, "dtype")] = "float32",
    split: Annotated[str, _option("split", DatasetSpec, "split")] = "train",
    subset: Annotated[str | None, _option("subset", DatasetSpec, "subset")] = None,
    streaming: Annotated[bool, _option("streaming", DatasetSpec, "streaming")] = False,
    prompt_column: Annotated[str, _option("prompt_column", ColumnsSpec, "prompt", _COLUMNS)] = "text",
    completion_column: Annotated[
        str | None, _option("completion_column", ColumnsSpec, "completion", _COLUMNS)
    ] = None,
    id_column: Annotated[str | None, _option("id_column", ColumnsSpec, "id", _COLUMNS)] = None,
    messages_column: Annotated[
        str | None, _option("messages_column", ColumnsSpec, "messages", _COLUMNS)
    ] = None,
    metadata_column: Annotated[
        list[str] | None, _option("metadata_column", ColumnsSpec, "metadata", _COLUMNS)
    ] = None,
    weight_column: Annotated[str | None, _option("weight_column", ColumnsSpec, "weight", _COLUMNS)] = None,
    projection_dim: Annotated[
        int, _option("projection_dim", GradientSpec, "projection_dim", _GRADIENTS)
    ] = 16,
    normalizer: Annotated[
        Normalizer, _option("normalizer", GradientSpec, "normalizer", _GRADIENTS)
    ] = "adafactor",
    rows: Annotated[RowKind, _option("rows", GradientSpec, "rows", _GRADIENTS)] = "float16",
    optimizer_state: Annotated[
        str | None, _option("optimizer_state", GradientSpec, "optimizer_state", _GRADIENTS)
    ] = None,
    fit_labels: Annotated[FitLabels, _option("fit_labels", GradientSpec, "fit_labels", _GRADIENTS)] = "true",
    projection: Annotated[
        Projection, _option("projection", GradientSpec, "projection", _GRADIENTS)
    ] = "rademacher",
    loss: Annotated[Loss, _option("loss", GradientSpec, "loss", _GRADIENTS)] = "sum",
    modules: Annotated[str | None, _option("modules", GradientSpec, "modules", _GRADIENTS)] = None,
    include_bias: Annotated[bool, _option("include_bias", GradientSpec, "include_bias", _GRADIENTS)] = False,
    max_tokens: Annotated[int | None, _option("max_tokens", GradientSpec, "max_tokens", _GRADIENTS)] = None,
    seed: Annotated[int, _option("seed", GradientSpec, "seed", _GRADIENTS)] = 0,
    sample_size: Annotated[int, _option("sample_size", GradientSpec, "sample_size", _GRADIENTS)] = 2048,
    normalize: Annotated[Normalize, _option("normalize", ScoringSpec, "normalize", _SCORING)] = "row",
    preconditioner: Annotated[
        bool,
        typer.Option(
            "--preconditioner/--no_preconditioner",
            help=help_text(ScoringSpec, "preconditioner"),
            rich_help_panel=_SCORING,
        ),
    ] = True,
    damping: Annotated[float, _option("damping", ScoringSpec, "damping", _SCORING)] = 0.1,
    search: Annotated[
        Literal["auto", "exact", "rabitq"], _option("search", SearchSpec, "kind", _SEARCH)
    ] = "auto",
    min_recall: Annotated[float, _option("min_recall", SearchSpec, "min_recall", _SEARCH)] = 0.99,
) -> BuildSpec:
    """The spec that the options stand for."""
    return BuildSpec.model_validate(
        {
            "model": model,
            "revision": revision,
            "dtype": dtype,
            "dataset": {"path": dataset, "split": split, "subset": subset, "streaming": streaming},
            "columns": {
                "prompt": prompt_column,
                "completion": completion_column,
                "messages": messages_column,
                "id": id_column,
                "metadata": metadata_column or (),
                "weight": weight_column,
            },
            "gradients": {
                "projection_dim": projection_dim,
                "normalizer": normalizer,
                "rows": rows,
                "optimizer_state": optimizer_state,
                "fit_labels": fit_labels,
                "projection": projection,
                "loss": loss,
                "modules": modules,
                "include_bias": include_bias,
                "max_tokens": max_tokens,
                "seed": seed,
                "sample_size": sample_size,
            },
            "scoring": {"normalize": normalize, "preconditioner": preconditioner, "damping": damping},
            "search": {"kind": search, "min_recall": min_recall},
        }
    )


def takes_spec(command: Callable[..., None]) -> Callable[..., None]:
    """`command(spec, …)` as a command that has the options of `build_spec` instead of the parameter `spec`."""
    options = signature(build_spec).parameters

    @wraps(command)
    def run(**values: Any) -> None:
        command(spec=build_spec(**{name: values.pop(name) for name in options}), **values)

    own = [one for name, one in signature(command).parameters.items() if name != "spec"]
    parameters = [one.replace(kind=Parameter.KEYWORD_ONLY) for one in (*own, *options.values())]
    vars(run)["__signature__"] = Signature(parameters)  # is what typer reads
    return run
