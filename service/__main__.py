"""Run the web service: `python -m service`, with settings from the environment (`BERGSON_PORT=9000`).

One process. Whatever keeps it from starting is said in one line, with what to do, and the status is not 0.
"""

import asyncio
import errno
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

from bergson_core.errors import BergsonError
from service.app import create_app
from service.auth.authorization import require_keys_if_public
from service.queue.broker import Broker
from service.settings import ServiceSettings
from worker.queue.embedded_redis import redis_url
from worker.telemetry import logs, tracing

logger = logging.getLogger(__name__)
_BACKLOG = 2048


def _read_settings() -> ServiceSettings:
    try:
        return ServiceSettings()
    except ValidationError as error:
        wrong = [
            ".".join(["settings", *map(str, one["loc"])]) + ": " + one["msg"].removeprefix("Value error, ")
            for one in error.errors()
        ]
        sys.exit("; ".join(wrong))


def _listen(settings: ServiceSettings) -> socket.socket:
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    address = (settings.host.strip("[]"), settings.port)
    try:
        listening = socket.create_server(address, family=family, backlog=_BACKLOG)
        # asyncio turns Nagle's algorithm off (40 ms an answer) only where the socket says that it is TCP.
        return socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP, fileno=listening.detach())
    except OSError as error:
        taken = error.errno == errno.EADDRINUSE
        why = "another program listens there" if taken else error.strerror or str(error)
        sys.exit(
            f"cannot listen on {settings.host} port {settings.port}: {why}; "
            "choose another with BERGSON_PORT or BERGSON_HOST"
        )


async def _check_redis(settings: ServiceSettings) -> None:
    async with Broker.connect(settings) as broker:
        await broker.ping()


class _Server(uvicorn.Server):
    """Is not ready from the first signal on, and stops `drain_s` seconds later; a second signal ends it at once."""

    def __init__(self, app: FastAPI, settings: ServiceSettings):
        config = uvicorn.Config(
            app,
            lifespan="on",
            proxy_headers=False,
            server_header=False,
            access_log=False,
            log_config=None,
            timeout_graceful_shutdown=settings.shutdown_s,
        )
        super().__init__(config)
        self._state, self._drain_s, self._stop_at = app.state, settings.drain_s, 0.0

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        self.force_exit = self.should_exit
        super().handle_exit(sig, frame)
        self._state.stopping, self._stop_at = True, time.monotonic() + self._drain_s

    async def on_tick(self, counter: int) -> bool:
        """Called ten times a second; whether to stop."""
        return await super().on_tick(counter) and (self.force_exit or time.monotonic() >= self._stop_at)


def _serve(settings: ServiceSettings, listening: socket.socket) -> None:
    asyncio.run(_check_redis(settings))
    host, port = listening.getsockname()[:2]
    logger.info("dashboard: http://%s:%s/docs", f"[{host}]" if ":" in host else host, port)
    server = _Server(create_app(settings), settings)
    server.run(sockets=[listening])
    if not server.started:
        sys.exit("the service did not start: the log above says why")


def _exit_on_signal(signum: int, frame: object) -> None:
    sys.exit(0)


def main() -> None:
    """Serve until a signal says to stop."""
    # uvicorn raises the signal again when it is done: unwind then, so that the embedded Redis is stopped.
    signal.signal(signal.SIGTERM, _exit_on_signal)
    signal.signal(signal.SIGINT, _exit_on_signal)
    settings = _read_settings()
    logs.configure(settings.log_format, settings.log_level)
    tracing.configure("bergson-web")
    try:
        require_keys_if_public(settings)
        with closing(_listen(settings)) as listening, redis_url(settings) as url:
            _serve(settings.model_copy(update={"redis_url": url}), listening)
    except BergsonError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
