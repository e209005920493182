"""`bergson query`: ask an index on disk."""

from pathlib import Path
from typing import Annotated

import typer

from bergson_core.errors import BergsonError
from bergson_core.specs import AttributionQuery, Direction
from service.cli.output import console, explain, results_table


def query(
    index: Annotated[Path, typer.Argument(help="Directory of the index.")],
    prompt: Annotated[str, typer.Option(help=explain(AttributionQuery, "prompt"))],
    completion: Annotated[str, typer.Option(help=explain(AttributionQuery, "completion"))],
    top_k: Annotated[int, typer.Option("--top_k", help=explain(AttributionQuery, "top_k"))] = 10,
    direction: Annotated[Direction, typer.Option(help=explain(AttributionQuery, "direction"))] = "proponents",
    json: Annotated[
        bool, typer.Option("--json", help="Print the answer as JSON, as the service would.")
    ] = False,
) -> None:
    """Find the training samples that made the model say a completion."""
    asked = AttributionQuery.model_validate(
        {"index": "index", "prompt": prompt, "completion": completion, "top_k": top_k, "direction": direction}
    )
    from bergson_core.attribution import AttributionIndex

    (answer,) = AttributionIndex.open(index).attribute([asked])
    if isinstance(answer, BergsonError):
        raise answer
    answer = answer.model_copy(update={"index": index.name})
    if json:
        console.print_json(answer.model_dump_json())
        return
    console.print(f"loss of the completion: {answer.query.loss:.3f} nats over {answer.query.n_tokens} tokens")
    for title, rows in (("proponents", answer.results), ("opponents", answer.opponents)):
        if rows is not None:
            console.print(results_table(title, rows))
