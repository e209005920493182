"""`bergson keys`: make API keys, list them, revoke one. Without any, the service answers this machine alone."""

import time
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table
from rich.text import Text

from bergson_core.errors import InvalidInput
from service.auth.api_keys import Caller, Key, KeyFile, Scope
from service.cli.serve import DataDir, set_environment
from service.cli.support.output import console, errors, help_text, print_message

app = typer.Typer(no_args_is_help=True, help="API keys of the service: make one, list them, revoke one.")

_DAY_S = 24 * 3600


def _file(data_dir: Path | None) -> KeyFile:
    return KeyFile(set_environment(data_dir).data_dir)


@app.command("create")
def create(
    name: Annotated[str, typer.Argument(help="Who or what the key is for.")],
    scope: Annotated[
        Scope,
        typer.Option(help="read: ask and look. write: also build, change and cancel. admin: also delete."),
    ],
    index: Annotated[
        list[str] | None, typer.Option(help=f"{help_text(Caller, 'indexes')} May be repeated.")
    ] = None,
    rate: Annotated[str | None, typer.Option(help=help_text(Caller, "rate"))] = None,
    concurrent: Annotated[int | None, typer.Option(min=1, help=help_text(Caller, "concurrent"))] = None,
    expires: Annotated[float | None, typer.Option(help="Days after which it counts no more.")] = None,
    without_text: Annotated[
        bool,
        typer.Option("--without_text", help="Show ids and scores alone: no prompts, completions, metadata."),
    ] = False,
    data_dir: DataDir = None,
) -> None:
    """Make a key and print it. It is shown this once; what is kept is its hash."""
    if expires is not None and expires <= 0:
        raise InvalidInput(f"--expires: expected more than 0 days, got {expires:g}")
    asked = {"scope": scope, "indexes": tuple(index or ()), "text": not without_text}
    key = _file(data_dir).create(
        Caller.model_validate({"name": name, **asked, "rate": rate, "concurrent": concurrent}),
        None if expires is None else time.time() + expires * _DAY_S,
    )
    errors.print("It is not shown again. Send it as the header `Authorization: Bearer …`:", markup=False)
    print_message(key)


@app.command("list")
def list_keys(data_dir: DataDir = None) -> None:
    """Show the keys, without their secrets."""
    keys = _file(data_dir).read()
    if keys is None:
        print_message("There are no keys: the service answers whoever is on its machine, and no other.")
        return
    table = Table(box=None, pad_edge=False)
    for title in ("name", "scope", "indexes", "rate", "open", "text", "made", "expires"):
        table.add_column(title, overflow="fold")
    for key in keys:
        table.add_row(*map(Text, _cells(key)))
    console.print(table)


@app.command("revoke")
def revoke(name: Annotated[str, typer.Argument(help="Name of the key.")], data_dir: DataDir = None) -> None:
    """Revoke a key: the next request with it is refused, without a restart."""
    _file(data_dir).revoke(name)
    print_message(f"{name} is revoked")


def _cells(key: Key) -> tuple[str, ...]:
    ends = "never" if key.expires_at is None else _day(key.expires_at) if key.counts() else "expired"
    limits = key.rate or "any", str(key.concurrent or "any")
    text = "shown" if key.text else "hidden"
    return key.name, key.scope, " ".join(key.indexes) or "all", *limits, text, _day(key.created_at), ends


def _day(unix_s: float) -> str:
    return time.strftime("%Y-%m-%d", time.localtime(unix_s))
