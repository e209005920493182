"""`bergson keys` creates, lists and revokes API keys. Without any key, the service answers only its own machine."""

import time
from pathlib import Path
from typing import Annotated, Final

import typer
from rich.table import Table
from rich.text import Text

from bergson_core.errors import InvalidInput
from service.auth.api_keys import ApiKey, Caller, KeyFile, Scope
from service.cli.support.console import console, error_console, print_message, print_warning
from service.cli.support.service_options import DataDir, apply_settings
from service.cli.support.spec_options import field_help
from service.settings import describe_unknown_variables

app = typer.Typer(no_args_is_help=True, help="Create, list and revoke API keys of the service.")

_DAY_S: Final = 24 * 3600


def _key_file(data_dir: Path | None) -> KeyFile:
    if warning := describe_unknown_variables():
        print_warning(warning)
    return KeyFile(apply_settings(data_dir).data_dir)


@app.command("create")
def create(
    name: Annotated[str, typer.Argument(help="Who or what the key is for.")],
    scope: Annotated[
        Scope,
        typer.Option(help="read: query and look. write: also build, change and cancel. admin: also delete."),
    ],
    index: Annotated[
        list[str] | None, typer.Option(help=f"{field_help(Caller, 'indexes')} May be repeated.")
    ] = None,
    rate: Annotated[str | None, typer.Option(help=field_help(Caller, "rate"))] = None,
    concurrent: Annotated[int | None, typer.Option(min=1, help=field_help(Caller, "concurrent"))] = None,
    expires: Annotated[float | None, typer.Option(help="Days until the key expires.")] = None,
    without_text: Annotated[
        bool,
        typer.Option("--without_text", help="Show only ids and scores: no prompts, completions or metadata."),
    ] = False,
    data_dir: DataDir = None,
) -> None:
    """Create a key and print it. It is shown only this once; what is stored is its hash."""
    if expires is not None and expires <= 0:
        raise InvalidInput(f"--expires: expected more than 0 days, got {expires:g}")
    caller = {
        "name": name,
        "scope": scope,
        "indexes": tuple(index or ()),
        "text": not without_text,
        "rate": rate,
        "concurrent": concurrent,
    }
    key_file = _key_file(data_dir)
    directory = key_file.path.parent
    is_new_directory = not directory.exists()
    key = key_file.create(
        Caller.model_validate(caller), None if expires is None else time.time() + expires * _DAY_S
    )
    if is_new_directory:
        print_warning(
            f"{directory} did not exist and was created: if a service is running, it has another data directory; name "
            "that with --data_dir or BERGSON_DATA_DIR"
        )
    error_console.print(
        f"The key is in {key_file.path} and counts for services with this data directory. It is not shown again. Send "
        "it as the header `Authorization: Bearer …`:",
        markup=False,
        soft_wrap=True,
    )
    print_message(key)


@app.command("list")
def list_keys(data_dir: DataDir = None) -> None:
    """List the keys without their secrets."""
    keys = _key_file(data_dir).read()
    if keys is None:
        print_message("There are no keys: the service answers requests from its own machine only.")
        return
    table = Table(box=None, pad_edge=False)
    for title in ("name", "scope", "indexes", "rate", "concurrent", "text", "created", "expires"):
        table.add_column(title, overflow="fold")
    for key in keys:
        table.add_row(*map(Text, _table_cells(key)))
    console.print(table)


@app.command("revoke")
def revoke(name: Annotated[str, typer.Argument(help="Name of the key.")], data_dir: DataDir = None) -> None:
    """Revoke a key: the next request with it is refused, without a restart."""
    _key_file(data_dir).revoke(name)
    print_message(f"{name} is revoked")


def _table_cells(key: ApiKey) -> tuple[str, ...]:
    if key.expires_at is None:
        expires = "never"
    else:
        expires = _date(key.expires_at) if key.is_active() else "expired"
    limits = key.rate or "any", str(key.concurrent or "any")
    text = "shown" if key.text else "hidden"
    indexes = " ".join(key.indexes) or "all"
    return key.name, key.scope, indexes, *limits, text, _date(key.created_at), expires


def _date(unix_s: float) -> str:
    return time.strftime("%Y-%m-%d", time.localtime(unix_s))
