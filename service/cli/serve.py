"""`bergson serve`, `worker` and `mcp` run one process of the service; `bergson up` runs all but the last."""

import logging
from contextlib import suppress
from typing import Annotated

import typer

from bergson_core.errors import InvalidInput
from bergson_core.version import with_extra
from service.cli.support.console import print_message
from service.cli.support.service_options import AllowedRoots, DataDir, Host, Port, apply_settings
from service.cli.support.spec_options import field_help
from service.settings import ClientSettings, ServiceSettings, describe_unknown_variables
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


def mcp(
    http: Annotated[
        bool, typer.Option(help="Serve over HTTP, at /mcp, instead of standard input and output.")
    ] = False,
    host: Annotated[str, typer.Option(help="With --http: address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="With --http: port to listen on.")] = 8001,
    url: Annotated[str | None, typer.Option(help=field_help(ClientSettings, "url"))] = None,
    allow_takedown: Annotated[
        bool,
        typer.Option(
            "--allow_takedown", help="Add a tool that takes documents down, with a key of scope write."
        ),
    ] = False,
) -> None:
    """Let assistants ask a running service, over the Model Context Protocol.

    By default, an assistant starts this command and speaks to it over standard input and output; BERGSON_URL and
    BERGSON_API_KEY name the service and the key. With --http, each caller sends a key of their own as
    `Authorization: Bearer bg_…`, and BERGSON_ALLOWED_HOSTS names the hosts that the server answers to.
    """
    try:
        from service.mcp.service_access import ServiceAccess
        from service.mcp.transports import serve_http, serve_stdio
    except ImportError as error:
        if (error.name or "").partition(".")[0] != "mcp":
            raise
        raise InvalidInput(f"`bergson mcp` needs the MCP SDK: pip install {with_extra('mcp')}") from error
    from worker.telemetry import logs

    settings = ServiceSettings().model_copy(update={"host": host, "port": port})
    logs.configure(settings.log_format, settings.log_level)
    logging.getLogger("httpx").setLevel(logging.WARNING)  # it logs each call of the service
    access = ServiceAccess(url, forwards_keys=http)
    access.require_valid_url()
    if http:
        serve_http(access, settings, allow_takedown=allow_takedown)
    else:
        serve_stdio(access, allow_takedown=allow_takedown)


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
