"""Answers a second and latencies of the service under load, with one client and with many.

    python -m benchmarks.service_load [--seconds 60] [--clients 1 8 32 128]

Redis, one worker, the web service and the clients share this machine's cores. The clients are coroutines of this
process; each sends a query over its own connection, waits for the answer, and sends the next query. The index is the
demo's: 4,800 documents as signs, kfac, block norm; the model is trained first if it is not there. The clients take
turns through its 1,600 queries, the top 10 with text. The cache of answers is off, except where it is measured.

Then the benchmark measures a worker that takes one query at a time, queries beside a build, answers from the cache, and
how soon the web process is ready and with how much memory.
"""

import asyncio
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from itertools import cycle
from pathlib import Path
from typing import Any

from benchmarks.support.command_line import make_parser
from benchmarks.support.demo_model import prepare_demo_files
from benchmarks.support.processes import find_free_port
from benchmarks.support.text_files import write_sentence_pairs
from bergson_core.demo.synthetic_facts import make_corpus
from bergson_core.tokens.batching import BUDGET_TOKENS
from service.cli.support.process_group import ProcessGroup, running_system
from service.client import Client
from service.settings import ServiceSettings
from worker.queue.embedded_redis import embedded_redis

INDEX = "facts"
WARM_UP_S = 2
RETRY_S = 0.1
"""Pause of a client after an answer that is an error."""
BUILD_DOCUMENTS = 200_000
"""Documents of the build that runs beside queries, enough to outlast them."""
CACHED_QUERIES = 20
WEB_STARTS = 5


@dataclass
class LoadResult:
    """The answers that clients got.

    Attributes:
        latencies_s: Seconds from each query to its answer.
        error_statuses: How many answers had which HTTP status other than 200.
        duration_s: Wall time from the first query to the last answer.
    """

    latencies_s: list[float] = field(default_factory=list)
    error_statuses: Counter[int] = field(default_factory=Counter)
    duration_s: float = 0.0

    def __str__(self) -> str:
        quantiles = statistics.quantiles(self.latencies_s, n=100) if len(self.latencies_s) > 1 else [0.0] * 99
        times = "".join(f"{1e3 * quantiles[percent - 1]:>9.1f}" for percent in (50, 95, 99))
        errors = ", ".join(f"{status}: {count}" for status, count in sorted(self.error_statuses.items()))
        return f"{len(self.latencies_s) / self.duration_s:>10.1f}{times}   {errors}"


async def run_client(url: str, bodies: Iterator[bytes], end: float, result: LoadResult) -> None:
    """Sends queries until the time `end`.

    This is plain HTTP/1.1 over a socket, so that the clients leave as much of the cores as possible to the service.
    """
    host, port = url.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    while time.perf_counter() < end:
        body = next(bodies)
        head = f"POST /attribute HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\n"
        started = time.perf_counter()
        writer.write(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
        status, length = int((await reader.readline()).split()[1]), 0
        while line := (await reader.readline()).strip():
            name, _, value = line.partition(b":")
            length = int(value) if name.lower() == b"content-length" else length
        await reader.readexactly(length)
        if status == 200:
            result.latencies_s.append(time.perf_counter() - started)
        else:
            result.error_statuses[status] += 1
            await asyncio.sleep(RETRY_S)
    writer.close()


def demo_bodies(query_count: int = 1600) -> Iterator[bytes]:
    """Returns the bodies of requests with the first queries of the demo, in turn and without end."""
    return cycle(
        json.dumps({"index": INDEX, "prompt": query.prompt, "completion": query.completion}).encode()
        for query in make_corpus(people=400, seed=0).queries[:query_count]
    )


def measure_load(url: str, clients: int, seconds: float, query_count: int = 1600) -> LoadResult:
    """Runs `clients` clients for `seconds`, after a warm-up, with the first `query_count` queries of the demo."""
    bodies = demo_bodies(query_count)

    async def run_clients(result: LoadResult, seconds: float) -> None:
        end = time.perf_counter() + seconds
        await asyncio.gather(*(run_client(url, bodies, end, result) for _ in range(clients)))

    asyncio.run(run_clients(LoadResult(), WARM_UP_S))
    result, started = LoadResult(), time.perf_counter()
    asyncio.run(run_clients(result, seconds))
    result.duration_s = time.perf_counter() - started
    return result


@contextmanager
def running_service(root: Path, demo: Path, **settings: Any) -> Iterator[ProcessGroup]:
    """Runs the service with its data in `root`, and builds the index of the demo unless it is there."""
    variables = {f"BERGSON_{name.upper()}": str(value) for name, value in settings.items()}
    os.environ |= {
        "BERGSON_DATA_DIR": str(root),
        "BERGSON_PORT": str(find_free_port()),
        "BERGSON_ALLOWED_ROOTS": f"{demo}:{root}",
        **variables,
    }
    try:
        with (
            running_system(ServiceSettings(), log=root / "processes.log") as system,
            Client(system.url) as client,
        ):
            if INDEX not in [index.name for index in client.indexes()]:
                client.build(INDEX, wait=True, **demo_build_fields(demo))
            client.attribute(INDEX, "Berin Birchall works for", " Emberly")  # opens the index
            yield system
    finally:
        for name in variables:
            del os.environ[name]


def demo_build_fields(demo: Path) -> dict[str, Any]:
    """Returns the fields of the build of the demo's index."""
    return {
        "model": str(demo / "model"),
        "dataset": {"path": str(demo / "corpus" / "documents.jsonl")},
        "columns": {"prompt": "text", "id": "id", "metadata": ["fact"]},
        "gradients": {"normalizer": "kfac", "rows": "sign"},
        "scoring": {"normalize": "block"},
    }


@contextmanager
def running_build(url: str, root: Path, demo: Path) -> Iterator[None]:
    """Keeps a large build in the stage `gradients` while the context is open; prints its speed afterwards."""
    source = {"path": str(write_sentence_pairs(root, BUILD_DOCUMENTS))}
    with Client(url) as client:
        job = client.build("other", model=str(demo / "model"), dataset=source)
        for record in client.events(job):
            if record.progress.stage == "gradients":
                break
        yield
        record = client.job(job)
        assert record.state == "running" and record.progress.stage == "gradients", record
        client.cancel(job)
        for _ in client.events(job):
            pass
    rate = record.progress.tokens_per_s or 0
    print(f"{'':<34}the build: {rate:,.0f} tokens/s, in batches of {BUDGET_TOKENS:,} tokens")


def measure_web_process(root: Path, redis: str) -> tuple[float, float]:
    """Starts a web process; returns (seconds until it answers, its resident memory in MB at that moment)."""
    port = find_free_port()
    environment = os.environ | {
        "BERGSON_PORT": str(port),
        "BERGSON_DATA_DIR": str(root),
        "REDIS_URL": redis,
    }
    started = time.perf_counter()
    with subprocess.Popen(
        [sys.executable, "-Pm", "service"], env=environment, stderr=subprocess.DEVNULL
    ) as process:
        while not is_alive(port):
            time.sleep(0.005)
        ready_s = time.perf_counter() - started
        pages = int(Path(f"/proc/{process.pid}/statm").read_text().split()[1])
        process.terminate()
    return ready_s, pages * os.sysconf("SC_PAGE_SIZE") / 1e6


def is_alive(port: int) -> bool:
    """Returns whether a web process answers `GET /livez` on a port of this machine."""
    with socket.socket() as connection, suppress(ConnectionError):
        connection.connect(("127.0.0.1", port))
        connection.sendall(b"GET /livez HTTP/1.1\r\nHost: localhost\r\n\r\n")
        return b" 200 " in connection.recv(100)
    return False


def main() -> None:
    """Runs the benchmark."""
    parser = make_parser(__doc__)
    parser.add_argument("--seconds", type=float, default=60, help="length of a measurement; some are shorter")
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 8, 32, 128])
    options = parser.parse_args()
    seconds, demo = options.seconds, prepare_demo_files()
    with tempfile.TemporaryDirectory() as directory:
        root = Path(directory)
        print(f"{'':<34}{'answers/s':>10}{'p50 ms':>9}{'p95':>9}{'p99':>9}   errors", flush=True)

        def show(name: str, result: LoadResult) -> None:
            print(f"{name:<34}{result}", flush=True)

        with running_service(root, demo, cache_bytes=0) as system:
            for clients in options.clients:
                show(f"{clients} clients", measure_load(system.url, clients, seconds))
            show("1 client, nothing else", measure_load(system.url, 1, seconds / 2))
            with running_build(system.url, root, demo):
                show("1 client beside a build", measure_load(system.url, 1, seconds / 2))
        with running_service(root, demo, cache_bytes=0, query_batch=1) as system:
            show("32 clients, one query at a time", measure_load(system.url, 32, seconds))
        with running_service(root, demo) as system:
            measure_load(system.url, 1, 1, CACHED_QUERIES)
            cached = measure_load(system.url, 1, seconds / 6, CACHED_QUERIES)
            show("1 client, answers from the cache", cached)
        with embedded_redis(root / "redis") as redis:
            measurements = sorted(measure_web_process(root, redis) for _ in range(WEB_STARTS))
        ready_s, megabytes = measurements[WEB_STARTS // 2]
        print(
            f"web process: ready in {ready_s:.2f} s (median of {WEB_STARTS}), {megabytes:.0f} MB at that moment"
        )


if __name__ == "__main__":
    main()
