"""`bergson worker`, or `python -Pm worker`, runs one worker until SIGTERM or Ctrl-C.

The environment configures it (`worker.settings`).
"""

import logging
import os
import signal
import socket
import sys
from types import FrameType
from typing import Any, cast
from uuid import uuid4

from pydantic import ValidationError
from redis import Redis, RedisError

from bergson_core.errors import BergsonError
from bergson_core.utils.private_directory import prepare_private_directory
from bergson_core.utils.progress import silence_libraries
from worker.process.runner import Runner
from worker.queue.embedded_redis import redis_url
from worker.queue.job_queue import WorkerQueue
from worker.queue.redis_client import connect
from worker.queue.redis_errors import describe_eviction, describe_reason
from worker.settings import Settings, describe_settings_error
from worker.telemetry import logs, tracing

logger = logging.getLogger(__name__)


def main(settings: Settings | None = None) -> None:
    """Runs a worker in the main thread of this process.

    The first signal makes the worker hand its job back and return, a second one ends the process at once.

    Args:
        settings: Settings of the worker; by default those of the environment.
    """
    try:
        settings = settings or Settings()
    except ValidationError as error:
        sys.exit(f"error: {describe_settings_error(error, Settings)}")
    logs.configure(settings.log_format, settings.log_level)
    tracing.configure("bergson-worker")
    _prepare_libraries(settings.threads)
    worker_id = f"{socket.gethostname()}-{os.getpid()}-{uuid4().hex[:6]}"
    try:
        if warning := prepare_private_directory(settings.data_dir):
            logger.warning("%s", warning)
        settings.require_roots()
        with redis_url(settings) as url, connect(url) as client:
            from bergson_core.models.loading import default_device

            logs.redirect_libraries()
            _warn_about_eviction(client)
            runner = Runner(WorkerQueue(client, settings, worker_id), settings, default_device())

            def stop(signal_number: int, _frame: FrameType | None) -> None:
                signal.signal(signal_number, signal.SIG_DFL)
                runner.stop()

            for signal_number in (signal.SIGTERM, signal.SIGINT):
                signal.signal(signal_number, stop)
            runner.run()
    except BergsonError as error:
        sys.exit(f"error: {error}")


def _warn_about_eviction(client: Redis) -> None:
    """Logs a warning if Redis may remove keys that it still needs. A Redis that does not answer yet is let be."""
    try:
        warning = describe_eviction(cast("dict[str, Any]", client.info("memory")))
    except RedisError as error:
        logger.debug("the eviction policy of Redis is not known: %s", describe_reason(error))
        return
    if warning:
        logger.warning("%s", warning)


def _prepare_libraries(threads: int) -> None:
    """Limits the threads of torch and FAISS, unless `threads` is 0, and keeps their progress bars out of the log.

    The libraries read the environment when they are imported, so this comes before that.
    """
    if threads:
        for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
            os.environ[name] = str(threads)
    silence_libraries()
    logging.getLogger("faiss.loader").setLevel(logging.WARNING)


if __name__ == "__main__":
    main()
