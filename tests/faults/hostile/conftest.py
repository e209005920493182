"""A worker over a real Redis of the newer release, whose messages are changed."""

from collections.abc import Callable, Iterator

import pytest

from tests.worker.fixtures import core, make_queue, queue, redis, settings, start_worker
from tests.worker.servers import running_server, server_options

__all__ = ["core", "make_queue", "queue", "redis", "settings", "start_worker"]


@pytest.fixture(scope="session")
def redis_at(
    tmp_path_factory: pytest.TempPathFactory, require: Callable[..., str]
) -> Iterator[tuple[str, str]]:
    """URLs of a Redis, for the test and for the code under test."""
    directory = tmp_path_factory.mktemp("redis")
    url = f"unix://{directory}/redis.sock"
    command = [require("redis-server"), *server_options(port=0, unixsocket=f"{directory}/redis.sock")]
    with running_server(command, directory, url):
        yield url, url
