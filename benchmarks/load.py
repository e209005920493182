"""The service under load: requests a second and their latencies, with one client and with many.

    python -m benchmarks.load [--seconds 60] [--clients 1 8 32 128]

Everything is on this machine and shares its cores: Redis, one worker, the web service, and the clients, coroutines of
this process that each send a query, wait for its answer, and send the next one, over a connection of their own. The
index is the demo's (`make demo` first): 4,800 documents as signs, kfac, block norm. Queries take turns through its
1,600 facts, the top 10 with text; the cache of answers is off, but where it is measured.

Then: the same with a worker that takes one query at a time; with a build running beside it; what the cache gives; and
how soon the web process is ready, with how much memory.
"""

import argparse
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
from itertools import count
from pathlib import Path
from typing import Any

from benchmarks.latency import free_port
from benchmarks.memory import make_sources
from bergson_core.data.batching import BUDGET_TOKENS
from bergson_core.demo.synthetic_facts import make_corpus
from service.cli.demo import default_directory
from service.cli.support.process_group import ProcessGroup, running_system
from service.client import Client
from service.settings import ServiceSettings
from worker.queue.embedded_redis import embedded_redis

INDEX = "facts"


@dataclass
class Load:
    """What came back: seconds of each answer, and the statuses of what was no answer."""

    seconds: list[float] = field(default_factory=list)
    refused: Counter[int] = field(default_factory=Counter)
    took_s: float = 0.0

    def line(self) -> str:
        cuts = statistics.quantiles(self.seconds, n=100) if len(self.seconds) > 1 else [0.0] * 99
        times = "".join(f"{1e3 * cuts[percent - 1]:>9.1f}" for percent in (50, 95, 99))
        refused = ", ".join(f"{status}: {number}" for status, number in sorted(self.refused.items()))
        return f"{len(self.seconds) / self.took_s:>10.1f}{times}   {refused}"


async def _client(url: str, bodies: Iterator[bytes], until: float, load: Load) -> None:
    """One client: plain HTTP/1.1 over a socket, so that the cores are the service's."""
    host, port = url.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    while time.perf_counter() < until:
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
            load.seconds.append(time.perf_counter() - started)
        else:
            load.refused[status] += 1
            await asyncio.sleep(0.1)
    writer.close()


def under_load(url: str, clients: int, seconds: float, facts: int = 1600) -> Load:
    """So many clients for so long, after a warm-up."""
    queries = make_corpus(people=400, seed=0).queries[:facts]
    bodies = (
        json.dumps(
            {
                "index": INDEX,
                "prompt": (one := queries[k % len(queries)]).prompt,
                "completion": one.completion,
            }
        ).encode()
        for k in count()
    )

    async def run(load: Load, seconds: float) -> None:
        until = time.perf_counter() + seconds
        await asyncio.gather(*(_client(url, bodies, until, load) for _ in range(clients)))

    asyncio.run(run(Load(), 2))
    load, started = Load(), time.perf_counter()
    asyncio.run(run(load, seconds))
    load.took_s = time.perf_counter() - started
    return load


@contextmanager
def system(root: Path, **settings: Any) -> Iterator[ProcessGroup]:
    """The service on the data of `root`, with an index of the demo."""
    demo = default_directory() / "people-400-seed-0"
    port = free_port()
    named = {f"BERGSON_{name.upper()}": str(value) for name, value in settings.items()}
    os.environ |= {
        "BERGSON_DATA_DIR": str(root),
        "BERGSON_PORT": str(port),
        "BERGSON_ALLOWED_ROOTS": f"{demo}:{root}",
    } | named
    try:
        with (
            running_system(ServiceSettings(), log=root / "processes.log") as running,
            Client(running.url) as client,
        ):
            if INDEX not in [one.name for one in client.indexes()]:
                client.build(INDEX, wait=True, **build_of(demo))
            client.attribute(INDEX, "Berin Birchall works for", " Emberly")
            yield running
    finally:
        for name in named:
            del os.environ[name]


def build_of(demo: Path) -> dict[str, Any]:
    return {
        "model": str(demo / "model"),
        "dataset": {"path": str(demo / "corpus" / "documents.jsonl")},
        "columns": {"prompt": "text", "id": "id", "metadata": ["fact"]},
        "gradients": {"normalizer": "kfac", "rows": "sign"},
        "scoring": {"normalize": "block"},
    }


@contextmanager
def building(url: str, root: Path) -> Iterator[None]:
    """While the context is open a build of 200,000 documents runs, and says afterwards how large its batches were."""
    demo = default_directory() / "people-400-seed-0"
    source = {"path": str(make_sources(root, 200_000))}
    with Client(url) as client:
        job = client.build("other", model=str(demo / "model"), dataset=source)
        for record in client.events(job):
            if record.progress.stage == "gradients":
                break
        yield
        record = client.job(job)
        assert record.state == "running" and record.progress.stage == "gradients", record
        rate = record.progress.tokens_per_s or 0
        client.cancel(job)
        for _ in client.events(job):
            pass
    print(f"{'':<34}the build: {rate:,.0f} tokens/s, a batch of {BUDGET_TOKENS:,} tokens")


def web_process(root: Path, redis: str) -> tuple[float, float]:
    """(seconds until a web process answers, its resident memory in MB then)."""
    port = free_port()
    environment = os.environ | {
        "BERGSON_PORT": str(port),
        "BERGSON_DATA_DIR": str(root),
        "REDIS_URL": redis,
    }
    started = time.perf_counter()
    with subprocess.Popen(
        [sys.executable, "-m", "service"], env=environment, stderr=subprocess.DEVNULL
    ) as process:
        while True:
            with socket.socket() as connection, suppress(ConnectionError):
                connection.connect(("127.0.0.1", port))
                connection.sendall(b"GET /livez HTTP/1.1\r\nHost: localhost\r\n\r\n")
                if b" 200 " in connection.recv(100):
                    break
            time.sleep(0.005)
        ready_s = time.perf_counter() - started
        pages = int(Path(f"/proc/{process.pid}/statm").read_text().split()[1])
        process.terminate()
    return ready_s, pages * os.sysconf("SC_PAGE_SIZE") / 1e6


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 8, 32, 128])
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        root = Path(directory)
        print(f"{'':<34}{'answers/s':>10}{'p50 ms':>9}{'p95':>9}{'p99':>9}   refused", flush=True)

        def show(name: str, load: Load) -> None:
            print(f"{name:<34}{load.line()}", flush=True)

        with system(root, cache_bytes=0) as running:
            for clients in options.clients:
                show(f"{clients} clients", under_load(running.url, clients, options.seconds))
            show("1 client, nothing else", under_load(running.url, 1, options.seconds / 2))
            with building(running.url, root):
                show("1 client beside a build", under_load(running.url, 1, options.seconds / 2))
        with system(root, cache_bytes=0, query_batch=1) as running:
            show("32 clients, one query at a time", under_load(running.url, 32, options.seconds))
        with system(root) as running:
            under_load(running.url, 1, 1, facts=20)
            show(
                "1 client, answers from the cache", under_load(running.url, 1, options.seconds / 6, facts=20)
            )
        with embedded_redis(root / "redis") as redis:
            found = sorted(web_process(root, redis) for _ in range(5))
        ready_s, megabytes = found[2]
        print(f"web process: ready in {ready_s:.2f} s (median of 5), {megabytes:.0f} MB then")


if __name__ == "__main__":
    main()
