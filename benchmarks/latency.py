"""What the service adds to a query: `POST /attribute` beside the same query in this process.

    python -m benchmarks.latency [--documents 4800] [--queries 200]

Builds an index of the fact corpus on a GPT-NeoX of a million parameters, opens it here, and starts Redis, a worker
and the web service as processes of their own. Rounds alternate: a query here, the same over HTTP by Python's own
`http.client`, and a top 11 by `service.client`, one client, one at a time. What is reported is the difference of the
medians, and the timings that the worker gives itself.
"""

import argparse
import http.client
import json
import os
import socket
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from benchmarks.memory import make_model, make_sources
from bergson_core import AttributionIndex, build_index
from bergson_core.demo.synthetic_facts import make_corpus
from bergson_core.schemas.build import BuildSpec, ColumnsSpec, DatasetSpec
from bergson_core.schemas.query import AttributionQuery
from service.cli.support.process_group import running_system
from service.client import Client
from service.settings import ServiceSettings

INDEX = "facts"
WARM_UP = 20


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        return listening.getsockname()[1]


def percentile(seconds: Sequence[float], percent: int) -> float:
    """In milliseconds."""
    return 1e3 * statistics.quantiles(seconds, n=100)[percent - 1]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--documents", type=int, default=4800)
    parser.add_argument("--queries", type=int, default=200)
    options = parser.parse_args()
    facts = make_corpus(people=400, seed=0).queries
    queries = [
        AttributionQuery(index=INDEX, prompt=fact.prompt, completion=fact.completion)
        for fact in (facts[k % len(facts)] for k in range(WARM_UP + options.queries))
    ]
    with tempfile.TemporaryDirectory() as directory:
        root = Path(directory)
        path = root / "indexes" / INDEX
        path.parent.mkdir()
        source = DatasetSpec(path=str(make_sources(root, options.documents)))
        spec = BuildSpec(model=str(make_model(root)), dataset=source, columns=ColumnsSpec(id="id"))
        build_index(spec, path)
        index = AttributionIndex.open(path)
        here, over_http, by_client, inside = [], [], [], []
        settings = ServiceSettings(data_dir=root, port=free_port())
        os.environ |= {"BERGSON_DATA_DIR": str(root), "BERGSON_PORT": str(settings.port)}
        with running_system(settings, log=root / "processes.log") as system:
            client, plain = Client(system.url), http.client.HTTPConnection("127.0.0.1", settings.port)
            for query in queries:
                started = time.perf_counter()
                index.attribute([query])
                here.append(time.perf_counter() - started)
                started = time.perf_counter()
                body = {"index": INDEX, "prompt": query.prompt, "completion": query.completion}
                plain.request("POST", "/attribute", json.dumps(body), {"Content-Type": "application/json"})
                answer = json.loads(plain.getresponse().read())
                over_http.append(time.perf_counter() - started)
                inside.append(answer["timing_ms"])
                started = time.perf_counter()
                client.attribute(INDEX, query.prompt, query.completion, top_k=11)  # in no cache
                by_client.append(time.perf_counter() - started)
    here, over_http, by_client, inside = (one[WARM_UP:] for one in (here, over_http, by_client, inside))
    print(f"{options.documents:,} documents, {options.queries} queries, one client, top 10 with text")
    print(f"{'':<16}{'median ms':>10}{'p95 ms':>10}")
    columns = {"in this process": here, "POST /attribute": over_http, "service.client": by_client}
    for name, seconds in columns.items():
        print(f"{name:<16}{percentile(seconds, 50):>10.1f}{percentile(seconds, 95):>10.1f}")
    print(f"overhead, median minus median: {percentile(over_http, 50) - percentile(here, 50):.1f} ms")
    parts = {part: statistics.median(one[part] for one in inside) for part in ("queue", "gradient", "search")}
    print("as the worker tells: " + ", ".join(f"{part} {value:.1f} ms" for part, value in parts.items()))


if __name__ == "__main__":
    main()
