"""Options of the commands that start a part of the service or read its files."""

import os
from pathlib import Path
from typing import Annotated

import typer

from bergson_core.errors import InvalidInput
from service.cli.support.spec_options import field_help
from service.settings import ServiceSettings

DataDir = Annotated[Path | None, typer.Option("--data_dir", help=field_help(ServiceSettings, "data_dir"))]
Host = Annotated[str | None, typer.Option(help=field_help(ServiceSettings, "host"))]
Port = Annotated[int | None, typer.Option(help=field_help(ServiceSettings, "port"))]
AllowedRoots = Annotated[
    list[Path] | None,
    typer.Option(
        help="Directory below which requests may name local models and datasets, or several, separated by `:`. May "
        "be repeated. Without it, only the data directory."
    ),
]


def apply_settings(
    data_dir: Path | None = None,
    host: str | None = None,
    port: int | None = None,
    allow: list[Path] | None = None,
) -> ServiceSettings:
    """Writes the options that were given to the environment, which child processes inherit.

    Returns:
        The settings that result from the environment.

    Raises:
        InvalidInput: A directory to allow does not exist.
    """
    roots = os.pathsep.join(map(_locate_root, _split_roots(allow))) if allow else None
    options = {"DATA_DIR": data_dir, "HOST": host, "PORT": port, "ALLOWED_ROOTS": roots}
    os.environ.update({f"BERGSON_{name}": str(value) for name, value in options.items() if value is not None})
    return ServiceSettings()


def _split_roots(allow: list[Path]) -> list[str]:
    return [part for path in allow for part in str(path).split(os.pathsep) if part]


def _locate_root(root: str) -> str:
    """Returns the absolute path of a directory to allow."""
    path = Path(os.path.expanduser(root)).absolute()
    if not path.is_dir():
        raise InvalidInput(
            f"--allow: no directory at {path}; expected one that exists, or several separated by ':'"
        )
    return str(path)
