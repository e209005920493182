"""`bergson serve` and `bergson worker` run one process of the service; `bergson up` runs all of it."""

import logging
from contextlib import suppress
from typing import Annotated

import typer

from service.cli.support.console import print_message
from service.cli.support.service_options import AllowedRoots, DataDir, Host, Port, apply_settings
from service.settings import describe_unknown_variables
from worker.settings import PROCESS_LOG_FILE


def serve(data_dir: DataDir = None, host: Host = None, port: Port = None) -> None:
    """Run only the web service; workers on the same Redis do its work."""
    apply_settings(data_dir, host, port)
    from service.__main__ import main

    main()


def worker(data_dir: DataDir = None, allow: AllowedRoots = None) -> None:
    """Run one worker, which builds indexes and answers queries, on the GPU if there is one."""
    settings = apply_settings(data_dir, allow=allow)
    from worker.__main__ import main
    from worker.telemetry import logs

    if warning := describe_unknown_variables():
        logs.configure(settings.log_format, settings.log_level)
        logging.getLogger(__name__).warning("%s", warning)
    main()


def up(
    data_dir: DataDir = None,
    host: Host = None,
    port: Port = None,
    allow: AllowedRoots = None,
    workers: Annotated[int, typer.Option(min=1, help="Number of workers.")] = 1,
) -> None:
    """Run Redis (embedded unless REDIS_URL is set), workers and the web service until Ctrl-C.

    It prints one line when the service is ready. The processes log to `processes.log` in the data directory.
    """
    from service.auth.authorization import require_keys_if_public
    from service.cli.support.process_group import running_system

    settings = apply_settings(data_dir, host, port, allow)
    require_keys_if_public(settings)
    log = settings.data_dir / PROCESS_LOG_FILE
    # Ctrl-C may come as soon as the line is there.
    with running_system(settings, workers, log) as system, suppress(KeyboardInterrupt):
        print_message(
            f"explorer: {system.url}/   dashboard: {system.url}/docs   data: {settings.data_dir}   log: {log}   "
            "Ctrl-C stops everything"
        )
        system.wait()
