"""What is wrong with a real Redis that refuses commands is said in words, whichever way the command was sent."""

import shutil
import socket
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from redis import Redis, RedisError
from redis.exceptions import BusyLoadingError, ConnectionError, ResponseError, TimeoutError

from bergson_core.errors import RedisFull, RedisUnavailable
from tests.worker.helpers import wait_until
from tests.worker.servers import free_port, running_server, server_options
from worker.queue.redis_client import connect
from worker.queue.redis_errors import check_replies, find_trouble, unavailable_error


def write_in_pipeline(client: Redis) -> None:
    with client.pipeline() as pipe:
        pipe.xadd("bergson:replies:x", {"reply": "the text of an answer"})
        pipe.expire("bergson:replies:x", 9)
        pipe.execute()


WRITES: dict[str, Callable[[Redis], object]] = {
    "a command": lambda client: client.set("bergson:worker:x", "1"),
    "a script": lambda client: client.eval("return redis.call('HSET', KEYS[1], 'a', 1)", 1, "bergson:job:x"),
    "a pipeline": write_in_pipeline,
}


def refusal(client: Redis, write: Callable[[Redis], object]) -> RedisUnavailable:
    with pytest.raises(RedisError) as raised:
        write(client)
    return unavailable_error(raised.value)


@pytest.fixture
def user(redis_at: tuple[str, str]) -> Iterator[Redis]:
    """A client with the rights of the code under test."""
    with connect(redis_at[1]) as client:
        yield client


@pytest.mark.parametrize("write", WRITES.values(), ids=WRITES.keys())
def test_a_full_redis_says_that_it_is_full(redis: Redis, user: Redis, write: Callable[[Redis], object]):
    redis.config_set("maxmemory", 1)
    try:
        error = refusal(user, write)
    finally:
        redis.config_set("maxmemory", 0)
    assert type(error) is RedisFull
    assert str(error).startswith("Redis is full: ") and "maxmemory" in str(error)
    assert "answer of" not in str(error) and "XADD" not in str(error)


@pytest.mark.parametrize("write", WRITES.values(), ids=WRITES.keys())
def test_a_replica_says_that_it_accepts_no_writes(
    redis: Redis, user: Redis, write: Callable[[Redis], object]
):
    redis.execute_command("REPLICAOF", "127.0.0.1", "1")
    try:
        error = refusal(user, write)
    finally:
        redis.execute_command("REPLICAOF", "NO", "ONE")
    assert "replica that accepts no writes: let REDIS_URL name the master" in str(error)


@pytest.mark.parametrize("write", WRITES.values(), ids=WRITES.keys())
def test_a_redis_that_cannot_save_says_so(
    tmp_path: Path, require: Callable[..., str], write: Callable[[Redis], object]
):
    port, data = free_port(), tmp_path / "data"
    data.mkdir()
    command = [require("redis-server"), *server_options(port=port, dir=data, save="3600 1")]
    with (
        running_server(command, tmp_path / "redis", url := f"redis://127.0.0.1:{port}"),
        connect(url) as client,
    ):
        shutil.rmtree(data)
        with pytest.raises(RedisError):
            client.save()
        client.config_set("stop-writes-on-bgsave-error", "yes")
        client.bgsave()
        while client.info("persistence")["rdb_bgsave_in_progress"]:  # pyright: ignore[reportIndexIssue]
            pass
        error = refusal(client, write)
    assert str(error).startswith("Redis cannot save its data: ")


@pytest.mark.parametrize(
    ("credentials", "message"),
    [
        ("", "Redis wants a password: put user and password into REDIS_URL"),
        (":s3cret@", "Redis does not accept the user or the password of REDIS_URL"),
        ("nobody:s3cret@", "Redis does not accept the user or the password of REDIS_URL"),
    ],
)
def test_a_redis_with_a_password_says_that_it_wants_it(
    tmp_path: Path, require: Callable[..., str], credentials: str, message: str
):
    port = free_port()
    command = [require("redis-server"), *server_options(port=port, requirepass="secret")]
    with (
        running_server(command, tmp_path / "redis", f"redis://:secret@127.0.0.1:{port}"),
        connect(f"redis://{credentials}127.0.0.1:{port}") as client,
    ):
        error = refusal(client, WRITES["a command"])
    assert str(error).startswith(message) and "s3cret" not in str(error)


def test_a_redis_that_is_busy_with_a_script_says_so(tmp_path: Path, require: Callable[..., str]):
    port = free_port()
    command = [require("redis-server"), *server_options(port=port, lua_time_limit=20)]
    with (
        running_server(command, tmp_path / "redis", url := f"redis://127.0.0.1:{port}"),
        connect(url) as client,
        connect(url) as other,
        ThreadPoolExecutor() as threads,
    ):
        endless = threads.submit(client.eval, "while true do end", 0)

        def busy_error() -> RedisUnavailable | None:
            try:
                other.set("bergson:worker:x", "1")
            except RedisError as raised:
                return unavailable_error(raised)

        error = wait_until(busy_error)
        other.script_kill()
        with pytest.raises(RedisError):
            endless.result()
    assert str(error).startswith("Redis is busy with a script: ")


def test_a_number_of_a_database_that_does_not_exist_is_named(tmp_path: Path, require: Callable[..., str]):
    port = free_port()
    command = [require("redis-server"), *server_options(port=port)]
    with (
        running_server(command, tmp_path / "redis", url := f"redis://127.0.0.1:{port}"),
        connect(f"{url}/99") as client,
    ):
        error = refusal(client, WRITES["a command"])
    assert str(error).startswith("Redis has no database of the number in REDIS_URL: correct the number")


def test_a_server_that_is_no_redis_is_called_unreadable():
    with socket.create_server(("127.0.0.1", 0)) as listener, ThreadPoolExecutor() as threads:

        def answer_as_a_web_server() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.recv(4096)
                connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")

        threads.submit(answer_as_a_web_server)
        with connect(f"redis://127.0.0.1:{listener.getsockname()[1]}") as client:
            error = refusal(client, WRITES["a command"])
    assert str(error).startswith("Redis sends what cannot be read: does REDIS_URL name a Redis")


def test_a_user_who_lacks_a_right_is_told_where_they_are_listed(redis: Redis, redis_at: tuple[str, str]):
    redis.execute_command("ACL", "SETUSER", "weak", "on", ">secret", "~bergson:*", "-@all", "+get")
    try:
        redis.execute_command("AUTH", "weak", "secret")
        error = refusal(redis, WRITES["a command"])
    finally:
        redis.connection_pool.disconnect()
        with connect(redis_at[0]) as admin:
            admin.execute_command("ACL", "DELUSER", "weak")
            admin.execute_command("ACL", "LOG", "RESET")
    assert "does not allow the user of REDIS_URL a command: grant the rights" in str(error)


@pytest.mark.parametrize(
    ("error", "summary"),
    [
        (ConnectionError("Error 111 connecting to there:6379. Connection refused."), "Redis does not answer"),
        (TimeoutError("Timeout reading from socket"), "Redis does not answer"),
        (BusyLoadingError("Redis is loading the dataset in memory"), "Redis is loading its data"),
        (ConnectionError("max number of clients reached"), "Redis has no connection left"),
        (ResponseError("NOREPLICAS Not enough good replicas to write."), "Redis has too few replicas"),
        (ResponseError("unknown command 'XADD'"), "Redis refuses a command"),
    ],
)
def test_each_kind_of_trouble_has_its_words(error: RedisError, summary: str):
    assert find_trouble(error).summary.startswith(summary)
    assert str(unavailable_error(error)).startswith(summary)
    assert type(unavailable_error(error)) is RedisUnavailable


def test_a_connection_that_was_closed_meanwhile_counts_as_a_redis_that_does_not_answer():
    with pytest.raises(ConnectionError, match="closed"), check_replies():
        raise RuntimeError("unable to perform operation on <TCPTransport closed=True>; the handler is closed")
