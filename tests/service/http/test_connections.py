"""Clients that take too long are cut, and what they may send before a request is read is bounded."""

import json
import resource
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from typing import cast

import pytest
import uvicorn
from fastapi import FastAPI

from service.http import connections
from service.http.connections import (
    MAX_HEAD_BYTES,
    MAX_PIPELINED,
    Connection,
    cut_slow_connections,
    raise_file_limit,
)
from service.settings import ServiceSettings
from tests.worker.helpers import wait_until

TIMEOUT_S = 0.4
GENEROUS_S = 20
LONG_S = 600
"""Longer than a machine may stand still in the middle of a test."""
GET = b"GET /livez HTTP/1.1\r\nHost: localhost\r\n\r\n"
LARGE_FILE = b"/static/swagger/swagger-ui-bundle.js"
START = b"GET /livez HTTP/1.1\r\nHost: localhost\r\n"


class _Server(uvicorn.Server):
    async def on_tick(self, counter: int) -> bool:
        cut_slow_connections(self)
        return await super().on_tick(counter)


@contextmanager
def serve(app: FastAPI, settings: ServiceSettings) -> Iterator[tuple[str, int]]:
    """Serves `app` over the connections of the service in another thread, and yields its address."""
    # An address of its own: a client of another test that still asks a server at 127.0.0.1 which has ended, and whose
    # port this one was given, would be one connection more.
    listener = socket.create_server(("127.0.0.2", 0))
    protocol = partial(Connection, settings=settings)
    config = uvicorn.Config(app, log_level="error", http=cast("type[Connection]", protocol))
    config.timeout_graceful_shutdown = 1
    config.timeout_keep_alive = LONG_S
    server = _Server(config)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    wait_until(lambda: server.started)
    try:
        yield listener.getsockname()
    finally:
        server.should_exit = True
        thread.join(GENEROUS_S)
        listener.close()


Connect = Callable[[], socket.socket]


@contextmanager
def connecting(app: FastAPI, **settings: float) -> Iterator[Connect]:
    """Yields a function that opens connections to the service."""
    opened: list[socket.socket] = []
    with serve(app, ServiceSettings.model_validate(settings)) as address:

        def open_connection() -> socket.socket:
            opened.append(socket.create_connection(address, GENEROUS_S))
            return opened[-1]

        yield open_connection
        for connection in opened:
            connection.close()


@pytest.fixture
def connect(app: FastAPI) -> Iterator[Connect]:
    """Opens connections to a service that cuts slow clients soon."""
    with connecting(app, client_timeout_s=TIMEOUT_S) as open_connection:
        yield open_connection


def read_all(connection: socket.socket) -> bytes:
    """Returns what comes until the other side closes the connection."""
    received = b""
    try:
        while piece := connection.recv(65536):
            received += piece
    except ConnectionResetError:
        pass
    return received


def receive_some(connection: socket.socket) -> bytes:
    piece = connection.recv(65536)
    assert piece, "the connection was closed"
    return piece


def read_response(connection: socket.socket) -> bytes:
    received = b""
    while b"\r\n\r\n" not in received:
        received += receive_some(connection)
    head, _, body = received.partition(b"\r\n\r\n")
    (length,) = (
        int(line.split(b":")[1]) for line in head.split(b"\r\n") if line.startswith(b"content-length")
    )
    while len(body) < length:
        body += receive_some(connection)
    return head + b"\r\n\r\n" + body


def send_slowly(connection: socket.socket, piece: bytes) -> None:
    """Sends a piece every few milliseconds until the connection breaks; fails if it does not."""
    end = time.monotonic() + GENEROUS_S
    with suppress(ConnectionError):
        while time.monotonic() < end:
            connection.sendall(piece)
            time.sleep(TIMEOUT_S / 20)
        pytest.fail("the connection is still open")


def require_problem_bytes(received: bytes, status: int, code: str) -> None:
    head, _, body = received.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 %d " % status)
    assert b"content-type: application/problem+json" in head and b"connection: close" in head.lower()
    assert json.loads(body)["code"] == code


def test_a_connection_without_a_request_is_closed(connect: Connect) -> None:
    assert read_all(connect()) == b""


@pytest.mark.parametrize("start", [b"", b"GET ", START, START + b"X-Long: "])
def test_a_head_that_comes_too_slowly_is_cut(connect: Connect, start: bytes) -> None:
    connection = connect()
    connection.sendall(start)
    send_slowly(connection, b"a")


def test_the_next_head_on_a_connection_has_as_much_time_and_no_more(connect: Connect) -> None:
    connection = connect()
    for _ in range(4):
        time.sleep(TIMEOUT_S / 2)
        connection.sendall(GET)
        assert read_response(connection).startswith(b"HTTP/1.1 200 ")
    connection.sendall(START)
    send_slowly(connection, b"a: b\r\n")


def test_the_rest_of_a_refused_body_cannot_be_sent_without_end(connect: Connect) -> None:
    connection = connect()
    connection.sendall(
        START.replace(b"GET /livez", b"POST /nothing")
        + b"Content-Length: 10000\r\nContent-Type: application/json\r\n\r\n"
    )
    assert read_response(connection).startswith(b"HTTP/1.1 404 ")
    send_slowly(connection, b" ")


@pytest.mark.parametrize(
    "head",
    [
        START + b"X: " + MAX_HEAD_BYTES * b"x",
        b"GET /livez?" + MAX_HEAD_BYTES * b"x" + b" HTTP/1.1\r\nHost: localhost\r\n",
        START + MAX_HEAD_BYTES // 16 * b"X-Short: 0123456789\r\n",
    ],
    ids=["value", "path", "number"],
)
@pytest.mark.parametrize("end", [b"\r\n\r\n", b""], ids=["complete", "incomplete"])
def test_a_head_that_is_too_large_is_refused(connect: Connect, head: bytes, end: bytes) -> None:
    connection = connect()
    connection.sendall(head + b"\r\n" * (not end) + end)
    time.sleep(TIMEOUT_S / 4)
    if not end:
        for _ in range(3):
            with suppress(OSError):
                connection.sendall(b"X: " + MAX_HEAD_BYTES * b"y")
        assert b" 200 " not in read_all(connection)
    else:
        require_problem_bytes(read_all(connection), 431, "head_too_large")


def test_a_large_head_within_the_limit_is_read(connect: Connect) -> None:
    connection = connect()
    connection.sendall(START + b"X: " + (MAX_HEAD_BYTES - 200) * b"x" + b"\r\n\r\n")
    assert read_response(connection).startswith(b"HTTP/1.1 200 ")


@pytest.mark.parametrize("text", [b"\x16\x03\x01\x02\x00\x01", b"hello\r\n\r\n", b"GET / HTTP/9.9.9\r\n\r\n"])
def test_what_is_no_request_is_refused_as_a_problem(connect: Connect, text: bytes) -> None:
    connection = connect()
    connection.sendall(text)
    require_problem_bytes(read_all(connection), 400, "bad_request")


def test_pipelined_requests_are_answered_in_order_up_to_a_limit(connect: Connect) -> None:
    connection = connect()
    connection.sendall((MAX_PIPELINED - 1) * GET + GET.replace(b"livez", b"nothing"))
    assert [read_status(line) for line in read_heads(connection, MAX_PIPELINED)] == [
        *(MAX_PIPELINED - 1) * [b"200"],
        b"404",
    ]
    crowded = connect()
    crowded.sendall(100 * MAX_PIPELINED * GET)
    assert read_all(crowded).count(b"HTTP/1.1 200 ") <= MAX_PIPELINED + 1


def read_heads(connection: socket.socket, count: int) -> list[bytes]:
    received = b""
    while received.count(b"HTTP/1.1 ") < count:
        received += receive_some(connection)
    return received.split(b"HTTP/1.1 ")[1:]


def read_status(head: bytes) -> bytes:
    return head[:3]


def test_a_client_that_does_not_read_its_answers_is_cut(connect: Connect) -> None:
    with socket.socket() as reader:
        reader.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        reader.settimeout(GENEROUS_S)
        reader.connect(connect().getpeername())
        reader.sendall(MAX_PIPELINED * GET.replace(b"/livez", LARGE_FILE))
        time.sleep(5 * TIMEOUT_S)
        received = read_all(reader)
    assert 0 < received.count(b"HTTP/1.1 200 ") < MAX_PIPELINED


def test_a_client_that_reads_slowly_but_steadily_gets_all_of_its_answer(connect: Connect) -> None:
    with socket.socket() as reader:
        reader.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
        reader.settimeout(GENEROUS_S)
        reader.connect(connect().getpeername())
        reader.sendall(GET.replace(b"/livez", LARGE_FILE))
        received, started = b"", time.monotonic()
        while not (piece := reader.recv(65536)) or len(received) < 1_000_000:
            assert piece, f"cut after {len(received)} bytes"
            received += piece
            time.sleep(TIMEOUT_S / 8)
        assert time.monotonic() - started > TIMEOUT_S, "it took longer than a slow client may"


def test_a_new_connection_takes_the_place_of_the_one_that_has_waited_longest(
    app: FastAPI, monkeypatch: pytest.MonkeyPatch
) -> None:
    complete, completed = Connection.on_response_complete, threading.Semaphore(0)

    def complete_and_count(connection: Connection) -> None:
        complete(connection)
        completed.release()

    monkeypatch.setattr(connections, "SPARE_CONNECTIONS", 2)
    monkeypatch.setattr(Connection, "on_response_complete", complete_and_count)
    with connecting(app, max_open_requests=2, client_timeout_s=LONG_S) as connect:
        waiting = [connect() for _ in range(4)]
        for connection in [*waiting, waiting[0]]:  # now the second one has waited longest
            connection.sendall(GET)
            assert read_response(connection).startswith(b"HTTP/1.1 200 ")
            assert completed.acquire(
                timeout=GENEROUS_S
            )  # the service waits from then on, not from the last byte
        newest = connect()
        newest.sendall(GET)
        assert read_response(newest).startswith(b"HTTP/1.1 200 ")
        assert read_all(waiting[1]) == b""
        for connection in [waiting[0], *waiting[2:], newest]:
            connection.sendall(GET)
            assert read_response(connection).startswith(b"HTTP/1.1 200 ")


@pytest.mark.parametrize(
    ("limits", "expected", "warns"),
    [
        ((1024, 524288), [(3660, 524288)], False),
        ((4096, 4096), [], False),
        ((256, 1024), [(1024, 1024)], True),
        ((1024, 1024), [], True),
        ((1024, resource.RLIM_INFINITY), [(3660, resource.RLIM_INFINITY)], False),
        ((resource.RLIM_INFINITY, resource.RLIM_INFINITY), [], False),
    ],
)
def test_the_process_allows_itself_the_files_that_it_may_need(
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    limits: tuple[int, int],
    expected: list[tuple[int, int]],
    warns: bool,
) -> None:
    chosen: list[tuple[int, int]] = []
    monkeypatch.setattr(resource, "getrlimit", lambda kind: limits)
    monkeypatch.setattr(resource, "setrlimit", lambda kind, values: chosen.append(values))
    raise_file_limit(ServiceSettings(max_open_requests=1100))
    assert chosen == expected
    assert ("BERGSON_MAX_OPEN_REQUESTS" in caplog.text) == warns
