"""`bergson query`: ask an index on disk; `bergson profile`: prepare it for a task."""

from json import loads
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.text import Text

from bergson_core.errors import BergsonError, InvalidInput
from bergson_core.schemas.build import ColumnsSpec, DatasetSpec
from bergson_core.schemas.query import MAX_VERIFIED, AttributionQuery, Direction
from service.cli.support.output import (
    console,
    help_text,
    module_table,
    print_message,
    results_table,
    token_table,
    verified_table,
)
from service.cli.support.spec_options import ExecutorOption


def query(
    index: Annotated[Path, typer.Argument(help="Directory of the index.")],
    prompt: Annotated[str, typer.Option(help=help_text(AttributionQuery, "prompt"))],
    completion: Annotated[str | None, typer.Option(help=help_text(AttributionQuery, "completion"))] = None,
    max_new_tokens: Annotated[
        int, typer.Option("--max_new_tokens", help=help_text(AttributionQuery, "max_new_tokens"))
    ] = 32,
    top_k: Annotated[int, typer.Option("--top_k", help=help_text(AttributionQuery, "top_k"))] = 10,
    direction: Annotated[
        Direction, typer.Option(help=help_text(AttributionQuery, "direction"))
    ] = "proponents",
    profile: Annotated[str, typer.Option(help=help_text(AttributionQuery, "profile"))] = "default",
    filter: Annotated[
        str | None,
        typer.Option(help=f"As JSON: {help_text(AttributionQuery, 'filter')}", metavar="JSON"),
    ] = None,
    include: Annotated[
        list[str] | None,
        typer.Option(help=f"Given once for each: {help_text(AttributionQuery, 'include')}"),
    ] = None,
    verify: Annotated[
        int | None,
        typer.Option(min=1, max=MAX_VERIFIED, help=f"How many: {help_text(AttributionQuery, 'verify')}"),
    ] = None,
    json: Annotated[
        bool, typer.Option("--json", help="Print the answer as JSON, as the service would.")
    ] = False,
    executor: ExecutorOption = "local",
) -> None:
    """Find the training samples that made the model say a completion."""
    asked = AttributionQuery.model_validate(
        {
            "index": "index",
            "prompt": prompt,
            "completion": completion,
            "max_new_tokens": max_new_tokens,
            "top_k": top_k,
            "direction": direction,
            "profile": profile,
            "filter": None if filter is None else _parsed(filter),
            "include": include or ("text", "metadata"),
            "verify": None if verify is None else {"top": verify},
        }
    )
    from bergson_core.attribution.index import AttributionIndex
    from bergson_core.executors import open_executor

    (answer,) = AttributionIndex.open(index, executor=open_executor(executor)).attribute([asked])
    if isinstance(answer, BergsonError):
        raise answer
    answer = answer.model_copy(update={"index": index.name})
    if json:
        console.print_json(answer.model_dump_json())
        return
    if answer.query.generated:
        console.print(f"the model says: {answer.query.completion!r}", markup=False)
    console.print(f"loss of the completion: {answer.query.loss:.3f} nats over {answer.query.n_tokens} tokens")
    for title, rows in (("proponents", answer.results), ("opponents", answer.opponents)):
        if rows is not None:
            console.print(results_table(title, rows))
            for row in rows:
                for parts in (token_table(row), module_table(row)):
                    if parts is not None:
                        console.print(Text.assemble((f"{row.id} ", "bold"), parts))
    if answer.verification is not None:
        console.print(
            verified_table([*(answer.results or ()), *(answer.opponents or ())], answer.verification)
        )
    if answer.notice is not None:
        console.print(answer.notice, markup=False)


def _parsed(text: str) -> Any:
    try:
        return loads(text)
    except ValueError as error:
        raise InvalidInput(
            f'--filter is not JSON ({error}); expected such as {{"source": ["wiki"]}}'
        ) from None


def profile(
    index: Annotated[Path, typer.Argument(help="Directory of the index.")],
    name: Annotated[str, typer.Option(help="Name of the profile, for `bergson query --profile`.")],
    dataset: Annotated[
        str, typer.Option(help=f"A sample of the task's queries. {help_text(DatasetSpec, 'path')}")
    ],
    split: Annotated[str, typer.Option(help=help_text(DatasetSpec, "split"))] = "train",
    prompt_column: Annotated[
        str, typer.Option("--prompt_column", help="Column with the prompts.")
    ] = "prompt",
    completion_column: Annotated[
        str, typer.Option("--completion_column", help="Column with the completions.")
    ] = "completion",
    mixing: Annotated[
        float | None,
        typer.Option(
            min=0, max=1, help="Share of the queries in the second moment; by default matched by eigenvalues."
        ),
    ] = None,
) -> None:
    """Fit a preconditioner to a task from a sample of its queries, without running the corpus again."""
    columns = ColumnsSpec(prompt=prompt_column, completion=completion_column)
    from bergson_core.attribution.profile_fitting import fit_profile
    from bergson_core.data.dataset import load_dataset_spec

    queries = load_dataset_spec(DatasetSpec(path=dataset, split=split))
    manifest = fit_profile(index, name, queries, columns, mixing=mixing)
    fitted = manifest.profiles[-1]
    print_message(
        f"{index}: profile {name} from {fitted.queries:,} queries, whose share is {fitted.mixing:.3g}"
    )
