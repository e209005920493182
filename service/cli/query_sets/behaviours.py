"""`bergson behaviours` creates, lists, shows and deletes the behaviours of an index on disk."""

from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table
from rich.text import Text

from bergson_core.schemas.behaviours.results import BehaviourSummary
from bergson_core.schemas.behaviours.spec import BehaviourSpec
from service.cli.support.common_options import IndexDirectory
from service.cli.support.console import console, print_json, print_message, progress_bar
from service.cli.support.query_files import naming_lines, read_query_file

app = typer.Typer(
    no_args_is_help=True, help="Create, list, show and delete behaviours: named sets of queries."
)

BehaviourName = Annotated[str, typer.Argument(metavar="NAME", help="Name of the behaviour.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON, as the service returns it.")]
_QUERIES_HELP = (
    'with one query on each line, such as {"prompt": "Is it?", "completion": " Indeed."}. A query has a prompt and a '
    "completion, or messages; it may have instead_of, span, join and objective."
)


@app.command("create")
def create(
    index: IndexDirectory,
    name: BehaviourName,
    queries: Annotated[Path, typer.Option(help=f"A JSON Lines file {_QUERIES_HELP}")],
    control: Annotated[
        Path | None,
        typer.Option(
            help="A JSON Lines file with the control set: queries that are like the others except for the behaviour, "
            "whose mean score is subtracted."
        ),
    ] = None,
) -> None:
    """Create a behaviour from a set of queries, for `bergson query --behaviour` and `bergson score --behaviour`."""
    files = {
        "queries": read_query_file("--queries", queries),
        "control": None if control is None else read_query_file("--control", control),
    }
    lists = {field: file and file.queries for field, file in files.items()}
    with naming_lines(**files):
        spec = BehaviourSpec.model_validate({"name": name, **lists})
    from bergson_core.attribution.index import AttributionIndex
    from bergson_core.storage.behaviours import require_new_behaviour
    from bergson_core.storage.manifest import read_manifest

    read_manifest(index)
    require_new_behaviour(index, name)  # before the model is loaded
    with progress_bar() as show, naming_lines(**files):
        made = AttributionIndex.open(index).behaviours.create(name, spec.queries, spec.control, report=show)
    against = f", less {made.control_count:,} of the control set" if made.control_count else ""
    print_message(
        f"{index}: behaviour {name} of {made.query_count:,} queries{against}; "
        f"loss {made.loss:.3f} nats, {made.size_bytes / 2**20:,.1f} MiB"
    )


@app.command("list")
def list_all(index: IndexDirectory, as_json: AsJson = False) -> None:
    """List the behaviours of an index."""
    from bergson_core.storage.behaviours import list_behaviours
    from bergson_core.storage.manifest import read_manifest

    read_manifest(index)
    found = list_behaviours(index)
    if as_json:
        print_json({"items": [each.model_dump(mode="json") for each in found]})
    elif found:
        console.print(_table(found))
    else:
        print_message(f"{index} has no behaviours; `bergson behaviours create` creates one")


@app.command("show")
def show(index: IndexDirectory, name: BehaviourName) -> None:
    """Print a behaviour with its queries as JSON."""
    from bergson_core.storage.behaviours import read_detail
    from bergson_core.storage.manifest import read_manifest

    read_manifest(index)
    print_json(read_detail(index, name).model_dump(mode="json"))


@app.command("delete")
def delete(index: IndexDirectory, name: BehaviourName) -> None:
    """Delete a behaviour for good."""
    from bergson_core.storage.behaviours import delete_behaviour
    from bergson_core.storage.manifest import read_manifest

    read_manifest(index)
    delete_behaviour(index, name)
    print_message(f"{index}: behaviour {name} is deleted")


def _table(found: list[BehaviourSummary]) -> Table:
    table = Table(box=None, pad_edge=False)
    for title in ("name", "queries", "control", "loss", "generation", "created"):
        is_text = title in ("name", "created")
        table.add_column(title, justify="left" if is_text else "right", overflow="fold")
    for each in found:
        counts = (
            f"{each.query_count:,}",
            f"{each.control_count:,}",
            f"{each.loss:.3f}",
            str(each.generation),
        )
        table.add_row(*map(Text, (each.name, *counts, each.created_at[:10])))
    return table
