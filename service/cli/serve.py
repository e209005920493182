"""`bergson up`, `serve` and `worker`: the processes of the service."""

import os
from pathlib import Path
from typing import Annotated

import typer

from service.cli.support.output import console, help_text
from service.settings import ServiceSettings

DataDir = Annotated[Path | None, typer.Option("--data_dir", help=help_text(ServiceSettings, "data_dir"))]
Host = Annotated[str | None, typer.Option(help=help_text(ServiceSettings, "host"))]
Port = Annotated[int | None, typer.Option(help=help_text(ServiceSettings, "port"))]
Allow = Annotated[
    list[Path] | None,
    typer.Option(
        help="Directory below which requests may name local models and datasets; may be repeated. "
        "Only the data directory where none is given."
    ),
]


def set_environment(
    data_dir: Path | None = None,
    host: str | None = None,
    port: int | None = None,
    allow: list[Path] | None = None,
) -> ServiceSettings:
    """Settings from the environment, with these options written over them there, so that children see them."""
    roots = os.pathsep.join(str(path.absolute()) for path in allow) if allow else None
    options = {"DATA_DIR": data_dir, "HOST": host, "PORT": port, "ALLOWED_ROOTS": roots}
    os.environ.update({f"BERGSON_{name}": str(value) for name, value in options.items() if value is not None})
    return ServiceSettings()


def serve(data_dir: DataDir = None, host: Host = None, port: Port = None) -> None:
    """Run the web service alone; workers on the same Redis do its work."""
    set_environment(data_dir, host, port)
    from service.__main__ import main

    main()


def worker(data_dir: DataDir = None, allow: Allow = None) -> None:
    """Run one worker: it builds indexes and answers queries, on the GPU where there is one."""
    set_environment(data_dir, allow=allow)
    from worker.__main__ import main

    main()


def up(
    data_dir: DataDir = None,
    host: Host = None,
    port: Port = None,
    allow: Allow = None,
    workers: Annotated[int, typer.Option(min=1, help="Number of workers.")] = 1,
) -> None:
    """Run everything: Redis (embedded unless REDIS_URL is set), workers and the web service, until Ctrl-C."""
    from service.auth.authorization import check_start
    from service.cli.support.process_group import running_system

    settings = set_environment(data_dir, host, port, allow)
    check_start(settings)
    with running_system(settings, workers) as system:
        console.print(f"dashboard: {system.url}/docs   data: {settings.data_dir}   Ctrl-C stops everything")
        system.wait()
