"""The broker is tested over a real Redis, with the fixtures of the worker's tests."""

from tests.worker.conftest import (
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
