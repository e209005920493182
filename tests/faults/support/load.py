"""Clients of every kind: a flood of them, slow ones, ones that vanish; and a watch on the processes that they meet.

The clients are coroutines over plain sockets, since the ones that misbehave are not to be had from an HTTP library, and
since they leave more of the cores to the service.
"""

import asyncio
import json
import socket
import statistics
import threading
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from itertools import count
from typing import Any, Self

import psutil

from tests.faults.support.system import SystemProcess

CONNECT_TIMEOUT_S = 30.0


def make_request(method: str, path: str, body: object = None, **headers: str) -> bytes:
    """Returns a request of HTTP/1.1, with `body` as JSON; an underscore in the name of a header is a hyphen."""
    content = b"" if body is None else json.dumps(body).encode()
    lines = [f"{method} {path} HTTP/1.1", "Host: localhost"]
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    if body is not None:
        lines += ["Content-Type: application/json", f"Content-Length: {len(content)}"]
    return "\r\n".join([*lines, "", ""]).encode() + content


@dataclass(frozen=True)
class Response:
    """A response, with the seconds from the request to its last byte."""

    status: int
    headers: Mapping[str, str]
    body: bytes
    elapsed_s: float

    def json(self) -> Any:
        """Returns the body as JSON."""
        return json.loads(self.body)


class Connection:
    """A connection to a web process, from which requests are sent byte by byte if need be."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter):
        self.reader, self.writer = reader, writer

    @classmethod
    @asynccontextmanager
    async def open(cls, url: str, buffer_bytes: int = 0) -> AsyncIterator[Self]:
        """Opens a connection, which is aborted at the end.

        Args:
            url: The web process.
            buffer_bytes: How much may arrive before it is read; by default whatever the system allows.
        """
        host, port = url.removeprefix("http://").split(":")
        client = socket.socket()
        client.setblocking(False)
        if buffer_bytes:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer_bytes)
        async with asyncio.timeout(CONNECT_TIMEOUT_S):
            await asyncio.get_running_loop().sock_connect(client, (host, int(port)))
        reader, writer = await asyncio.open_connection(sock=client, limit=buffer_bytes or 65536)
        try:
            yield cls(reader, writer)
        finally:
            writer.transport.abort()

    async def exchange(self, request: bytes) -> Response:
        """Sends a request and reads the whole response, which states its length."""
        started = time.perf_counter()
        self.writer.write(request)
        return await self.read_response(started)

    async def trickle(self, start: bytes, piece: bytes, pause_s: float) -> None:
        """Sends `start`, and then a piece every `pause_s` seconds, until the connection breaks."""
        self.writer.write(start)
        while not self.writer.is_closing():
            await asyncio.sleep(pause_s)
            self.writer.write(piece)

    async def read_response(self, started: float | None = None) -> Response:
        """Reads a whole response, which states its length."""
        started = time.perf_counter() if started is None else started
        head = (await self.reader.readuntil(b"\r\n\r\n")).decode()
        status, *lines = head.split("\r\n")
        pairs = (line.partition(":") for line in lines if line)
        headers = {name.lower(): value.strip() for name, _, value in pairs}
        body = await self.reader.readexactly(int(headers.get("content-length", 0)))
        return Response(int(status.split()[1]), headers, body, time.perf_counter() - started)

    async def read_until_cut(self, timeout_s: float) -> bytes:
        """Returns what the other side sends until it closes the connection. Raises `TimeoutError` if it does not."""
        received = bytearray()
        with suppress(ConnectionError):
            async with asyncio.timeout(timeout_s):
                while piece := await self.reader.read(65536):
                    received += piece
        return bytes(received)


async def send(url: str, request: bytes) -> Response:
    """Sends a request over a connection of its own."""
    async with Connection.open(url) as connection:
        return await connection.exchange(request)


@dataclass
class Tally:
    """What became of the requests of a flood.

    Attributes:
        sent: Number of requests.
        responses: Number of responses of each status.
        without_wait: Number of refusals with 429 or 503 that do not say when to try again.
        cut: What ended the requests without a response: the name of an exception, and how often.
        accepted_s: Seconds that each answer with the status 200 took.
    """

    sent: int = 0
    responses: Counter[int] = field(default_factory=Counter)
    without_wait: int = 0
    cut: Counter[str] = field(default_factory=Counter)
    accepted_s: list[float] = field(default_factory=list)

    def add(self, request: bytes, response: Response) -> None:
        """Counts the response to a question."""
        self.responses[response.status] += 1
        if response.status == 200:
            self.accepted_s.append(response.elapsed_s)
            require_own_answer(request, response)
        elif response.status in (429, 503):
            self.without_wait += not response.headers.get("retry-after", "").isdecimal()

    def quantile_s(self, percent: int) -> float:
        """Returns the time within which this share of the accepted requests was answered."""
        if len(self.accepted_s) < 2:
            return sum(self.accepted_s)
        return statistics.quantiles(self.accepted_s, n=100)[percent - 1]

    def __str__(self) -> str:
        cut = f", without a response: {dict(self.cut)}" if self.cut else ""
        statuses = ", ".join(f"{status}: {number}" for status, number in sorted(self.responses.items()))
        return (
            f"{self.sent} requests, {statuses}{cut}; accepted: p50 {self.quantile_s(50):.3f} s, "
            f"p99 {self.quantile_s(99):.3f} s"
        )


async def flood(
    url: str, requests: Iterable[bytes], rate: float, seconds: float, max_open: int = 400
) -> Tally:
    """Sends `rate` requests a second, whatever becomes of those before, each over a connection of its own.

    Args:
        url: The web process.
        requests: The requests, as many as are asked for.
        rate: Requests a second.
        seconds: Length of the flood.
        max_open: Most requests without a response; beyond them the flood waits.

    Returns:
        What became of the requests.
    """
    tally, slots, source = Tally(), asyncio.Semaphore(max_open), iter(requests)
    start = time.perf_counter()

    async def send_one(request: bytes) -> None:
        try:
            tally.add(request, await send(url, request))
        except (OSError, asyncio.IncompleteReadError, TimeoutError) as error:
            tally.cut[type(error).__name__] += 1
        finally:
            slots.release()

    async with asyncio.TaskGroup() as group:
        while (now := time.perf_counter() - start) < seconds:
            if tally.sent >= now * rate:
                await asyncio.sleep(1 / rate)
                continue
            await slots.acquire()
            tally.sent += 1
            group.create_task(send_one(next(source)))
    return tally


async def ask_in_turn(
    url: str, requests: Iterable[bytes], clients: int, seconds: float, pause_s: float = 0
) -> Tally:
    """Has each of some clients ask, wait for the response, pause, and ask again."""
    tally, source, end = Tally(), iter(requests), time.perf_counter() + seconds

    async def run_client() -> None:
        while time.perf_counter() < end:
            request = next(source)
            tally.sent += 1
            tally.add(request, await send(url, request))
            await asyncio.sleep(pause_s)

    async with asyncio.TaskGroup() as group:
        for _ in range(clients):
            group.create_task(run_client())
    return tally


class Watch:
    """Looks at the memory and the file descriptors of processes, several times a second, while the context is open.

    Args:
        processes: The processes by name.
    """

    def __init__(self, **processes: SystemProcess):
        self._processes = {name: psutil.Process(process.pid) for name, process in processes.items()}
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self.before = self.measure()
        self.peak = dict(self.before)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    def measure(self) -> dict[str, tuple[int, int]]:
        """Returns the resident memory in bytes and the number of open file descriptors of each process."""
        return {
            name: (process.memory_info().rss, process.num_fds()) for name, process in self._processes.items()
        }

    def growth_mb(self) -> dict[str, float]:
        """Returns by how many megabytes each process was larger at its largest than at the beginning."""
        return {name: (rss - self.before[name][0]) / 1e6 for name, (rss, _) in self.peak.items()}

    def _run(self) -> None:
        while not self._ended.wait(0.2):
            for name, (rss, fds) in self.measure().items():
                self.peak[name] = (max(rss, self.peak[name][0]), max(fds, self.peak[name][1]))


def make_questions(index: str, headers: Mapping[str, str], **fields: object) -> Iterator[bytes]:
    """Yields requests that ask an index, each something else, so that no answer can be that of another."""
    for number in count(1):
        body = {"index": index, "prompt": f"question {number} of", "completion": " many", **fields}
        yield make_request("POST", "/attribute", body, **headers)


def require_own_answer(request: bytes, response: Response) -> None:
    """Checks that a response with the status 200 is the answer to this request and not to another."""
    question = json.loads(request.partition(b"\r\n\r\n")[2])
    assert response.json()["query"]["prompt"] == question["prompt"]
