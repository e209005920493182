"""The worker is tested over a real Redis."""

import pytest

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
from tests.worker.helpers import on_one_redis

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


@pytest.hookimpl(tryfirst=True)
def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Runs the tests of a module with `ONE_REDIS` on one Redis. The queue and the runner are tested on both."""
    if getattr(metafunc.module, "ONE_REDIS", False) and "redis_at" in metafunc.fixturenames:
        metafunc.definition.add_marker(on_one_redis)
