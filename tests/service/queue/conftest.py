"""The broker is tested over a real Redis, with the fixtures that the worker's tests have too."""

from tests.worker.fixtures import (
    broker,
    core,
    make_queue,
    queue,
    redis,
    redis_at,
    settings,
    start_worker,
)

__all__ = ["broker", "core", "make_queue", "queue", "redis", "redis_at", "settings", "start_worker"]
