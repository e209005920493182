"""A Redis that evicts keys is warned about when a process starts."""

import logging
from collections.abc import Callable
from pathlib import Path

import pytest
from redis import Redis

from service.queue.broker import Broker
from tests.worker.servers import free_port, running_server, server_options
from worker.__main__ import _warn_about_eviction
from worker.queue.redis_client import connect
from worker.queue.redis_errors import describe_eviction
from worker.settings import Settings


@pytest.mark.parametrize("policy", ["allkeys-lru", "volatile-lru", "allkeys-random", "volatile-ttl"])
async def test_a_policy_that_removes_keys_is_warned_about(
    redis: Redis, broker: Broker, caplog: pytest.LogCaptureFixture, policy: str
):
    redis.config_set("maxmemory-policy", policy)
    try:
        warning = await broker.find_eviction()
        _warn_about_eviction(redis)
    finally:
        redis.config_set("maxmemory-policy", "noeviction")
    assert warning and policy in warning and "noeviction" in warning
    assert [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING] == [
        warning
    ]
    assert await broker.find_eviction() is None


def test_a_redis_that_does_not_tell_its_policy_is_not_warned_about():
    assert describe_eviction({}) is None


def test_a_redis_that_does_not_answer_yet_is_let_be(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    with connect(f"unix://{tmp_path}/none.sock") as client:
        _warn_about_eviction(client)
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


async def test_a_user_without_the_right_to_ask_is_not_warned(require: Callable[..., str], tmp_path: Path):
    port = free_port()
    with (
        running_server(
            [require("redis-server"), *server_options(port=port)],
            tmp_path / "redis",
            url := f"redis://127.0.0.1:{port}/0",
        ),
        connect(url) as admin,
    ):
        admin.execute_command("ACL", "SETUSER", "weak", "on", ">secret", "~*", "-@all", "+ping")
        settings = Settings(data_dir=tmp_path, redis_url=url.replace("://", "://weak:secret@"))
        async with Broker.connect(settings) as broker:
            assert await broker.find_eviction() is None
