"""The worker is tested over a real Redis."""

from tests.worker.fixtures import (
    broker,
    core,
    make_queue,
    queue,
    redis,
    redis_at,
    settings,
    spawn_worker,
    start_worker,
)

__all__ = [
    "broker",
    "core",
    "make_queue",
    "queue",
    "redis",
    "redis_at",
    "settings",
    "spawn_worker",
    "start_worker",
]
