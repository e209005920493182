"""Runs the web service as one process: `bergson serve`, or `python -Pm service`, with settings from the environment.

If the service cannot start, the process says in one line why and what to do, and exits with a status other than 0.
"""

import asyncio
import logging
import signal
import socket
import sys
import time
from contextlib import closing
from types import FrameType

import uvicorn
from fastapi import FastAPI
from pydantic import ValidationError

from bergson_core.errors import BergsonError, RedisFull
from bergson_core.utils.private_directory import prepare_private_directory
from service.app import create_app
from service.auth.authorization import require_keys_if_public
from service.http.connections import cut_slow_connections, make_server_config, raise_file_limit
from service.http.server_socket import open_server_socket
from service.queue.broker import Broker
from service.settings import ServiceSettings, describe_unknown_variables
from worker.queue.embedded_redis import redis_url
from worker.settings import describe_settings_error
from worker.telemetry import logs, tracing

logger = logging.getLogger(__name__)


def _read_settings() -> ServiceSettings:
    try:
        return ServiceSettings()
    except ValidationError as error:
        sys.exit(f"error: {describe_settings_error(error, ServiceSettings)}")


async def _check_redis(settings: ServiceSettings) -> None:
    """Raises `RedisUnavailable` unless Redis can be used. A full one can: jobs that wait may be cancelled there."""
    async with Broker.connect(settings, asks=False) as broker:
        try:
            await broker.ping()
        except RedisFull as error:
            logger.warning("%s", error)
        if warning := await broker.find_eviction():
            logger.warning("%s", warning)


class _Server(uvicorn.Server):
    """A server that stops in two steps.

    After the first signal `/readyz` fails, and `drain_s` seconds later the server stops. A second signal stops it at
    once.
    """

    def __init__(self, app: FastAPI, settings: ServiceSettings):
        config = make_server_config(app, settings)
        super().__init__(config)
        self._app_state, self._drain_s, self._stop_time = app.state, settings.drain_s, 0.0

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        self.force_exit = self.should_exit
        super().handle_exit(sig, frame)
        self._app_state.stopping, self._stop_time = True, time.monotonic() + self._drain_s

    async def on_tick(self, counter: int) -> bool:
        """Returns whether to stop; uvicorn calls this ten times a second."""
        if counter % 10 == 0:
            cut_slow_connections(self)
        return await super().on_tick(counter) and (self.force_exit or time.monotonic() >= self._stop_time)


def _serve(settings: ServiceSettings, server_socket: socket.socket) -> None:
    asyncio.run(_check_redis(settings))
    raise_file_limit(settings)
    host, port = server_socket.getsockname()[:2]
    logger.info("dashboard: http://%s:%s/docs", f"[{host}]" if ":" in host else host, port)
    server = _Server(create_app(settings), settings)
    server.run(sockets=[server_socket])
    if not server.started:
        sys.exit("the service did not start: its error is logged above")


def _exit_on_signal(signum: int, frame: object) -> None:
    sys.exit(0)


def main() -> None:
    """Runs the service until a signal tells it to stop."""
    # uvicorn raises the signal again when it has stopped. Exiting then unwinds the contexts below, which stop the
    # embedded Redis.
    signal.signal(signal.SIGTERM, _exit_on_signal)
    signal.signal(signal.SIGINT, _exit_on_signal)
    settings = _read_settings()
    logs.configure(settings.log_format, settings.log_level)
    tracing.configure("bergson-web")
    if warning := describe_unknown_variables():
        logger.warning("%s", warning)
    try:
        require_keys_if_public(settings)
        with closing(open_server_socket(settings)) as server_socket:
            if warning := prepare_private_directory(settings.data_dir):
                logger.warning("%s", warning)
            with redis_url(settings) as url:
                _serve(settings.model_copy(update={"redis_url": url}), server_socket)
    except BergsonError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
