"""Latencies of queries beside a build, and how long the build takes, for several shares of a worker's time.

    python -m benchmarks.job_share [--shares 0.25 0.5 0.75] [--clients 1 8 32] [--documents 20000] [--seconds 20]

Redis, one worker, the web service and the clients share this machine's cores. Queries and their index are those of
`benchmarks.service_load`, and the cache of answers is off. First, queries alone and the build alone; then, for each
share, the clients send queries from the moment at which the build is submitted until it has ended.
"""

import asyncio
import math
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from benchmarks.service_load import LoadResult, demo_bodies, measure_load, run_client, running_service
from benchmarks.support.command_line import make_parser
from benchmarks.support.demo_model import prepare_demo_files
from benchmarks.support.text_files import write_sentence_pairs
from service.client import Client


def build(url: str, name: str, demo: Path, documents: Path) -> float:
    """Builds an index and deletes it; returns the seconds from the submission of the build to its end."""
    with Client(url) as client:
        started = time.perf_counter()
        client.build(name, model=str(demo / "model"), dataset={"path": str(documents)}, wait=True)
        seconds = time.perf_counter() - started
        client.delete_index(name)
    return seconds


def measure_beside_build(
    url: str, clients: int, demo: Path, documents: Path, bodies: Iterator[bytes]
) -> tuple[LoadResult, float]:
    """Runs clients until a build has ended; returns the answers that they got, and the seconds of the build."""
    result = LoadResult()

    async def run() -> float:
        tasks = [asyncio.create_task(run_client(url, bodies, math.inf, result)) for _ in range(clients)]
        started = time.perf_counter()
        seconds = await asyncio.to_thread(build, url, "other", demo, documents)
        result.duration_s = time.perf_counter() - started
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        return seconds

    return result, asyncio.run(run())


def main() -> None:
    """Runs the benchmark."""
    parser = make_parser(__doc__)
    parser.add_argument("--shares", type=float, nargs="+", default=[0.25, 0.5, 0.75])
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--documents", type=int, default=20_000, help="documents of the build")
    parser.add_argument("--seconds", type=float, default=20, help="length of a measurement without a build")
    options = parser.parse_args()
    demo, bodies = prepare_demo_files(), demo_bodies()
    with tempfile.TemporaryDirectory() as directory:
        root = Path(directory)
        documents = write_sentence_pairs(root, options.documents)
        print(f"{'':<28}{'answers/s':>10}{'p50 ms':>9}{'p95':>9}{'p99':>9}   the build  errors", flush=True)

        def show(name: str, result: LoadResult | None, build_s: float | None) -> None:
            text = "" if result is None else str(result)
            numbers, errors = text[:37].ljust(37), text[37:].strip()
            print(
                f"{name:<28}{numbers}{'' if build_s is None else f'{build_s:9.1f} s'}  {errors}", flush=True
            )

        with running_service(root, demo, cache_bytes=0) as system:
            for clients in options.clients:
                show(f"{clients} clients", measure_load(system.url, clients, options.seconds), None)
            show("the build", None, build(system.url, "other", demo, documents))
        for share in options.shares:
            with running_service(root, demo, cache_bytes=0, job_share=share) as system:
                for clients in options.clients:
                    result, build_s = measure_beside_build(system.url, clients, demo, documents, bodies)
                    show(f"{clients} clients, share {share:g}", result, build_s)


if __name__ == "__main__":
    main()
