"""Milliseconds that the service adds to a query: `POST /attribute` compared with the same query in this process.

    python -m benchmarks.http_overhead [--documents 4800] [--queries 200]

The benchmark builds an index of the demo's sentences with a GPT-NeoX of 80,000 parameters, opens it here, and starts
Redis, a worker and the web service as processes of their own. Each round makes a query here, the same query over HTTP
by Python's `http.client`, and the same query for 11 results by `service.client`; a single client waits for each answer.
The output has the difference of the medians, and the parts that the worker itself measures.
"""

import http.client
import json
import os
import statistics
import tempfile
from pathlib import Path

from benchmarks.support.command_line import make_parser
from benchmarks.support.processes import find_free_port
from benchmarks.support.random_models import save_tiny_model
from benchmarks.support.text_files import write_sentence_pairs
from benchmarks.support.timing import measure_seconds, percentile_ms
from bergson_core import AttributionIndex, build_index
from bergson_core.demo.synthetic_facts import make_corpus
from bergson_core.schemas.build import BuildSpec
from bergson_core.schemas.query import AttributionQuery
from bergson_core.schemas.source import ColumnsSpec, DatasetSpec
from service.cli.support.process_group import running_system
from service.client import Client
from service.settings import ServiceSettings

INDEX = "facts"
WARM_UP_QUERIES = 20
HERE, PLAIN, CLIENT = "in this process", "POST /attribute", "service.client"
PARTS = ("queue", "gradient", "search")


def main() -> None:
    """Runs the benchmark."""
    parser = make_parser(__doc__)
    parser.add_argument("--documents", type=int, default=4800)
    parser.add_argument("--queries", type=int, default=200)
    options = parser.parse_args()
    questions = make_corpus(people=400, seed=0).queries
    seconds: dict[str, list[float]] = {HERE: [], PLAIN: [], CLIENT: []}
    worker_timings: list[dict[str, float]] = []
    with tempfile.TemporaryDirectory() as directory:
        root = Path(directory)
        index_path = root / "indexes" / INDEX
        index_path.parent.mkdir()
        source = DatasetSpec(path=str(write_sentence_pairs(root, options.documents)))
        spec = BuildSpec(
            model=str(save_tiny_model(root / "model")), dataset=source, columns=ColumnsSpec(id="id")
        )
        build_index(spec, index_path)
        index = AttributionIndex.open(index_path)
        settings = ServiceSettings(data_dir=root, port=find_free_port())
        os.environ |= {"BERGSON_DATA_DIR": str(root), "BERGSON_PORT": str(settings.port)}
        with running_system(settings, log=root / "processes.log") as system:
            client = Client(system.url)
            connection = http.client.HTTPConnection("127.0.0.1", settings.port)

            def post(body: dict[str, str]) -> None:
                headers = {"Content-Type": "application/json"}
                connection.request("POST", "/attribute", json.dumps(body), headers)
                worker_timings.append(json.loads(connection.getresponse().read())["timing_ms"])

            for number in range(WARM_UP_QUERIES + options.queries):
                question = questions[number % len(questions)]
                prompt, completion = question.prompt, question.completion
                query = AttributionQuery(index=INDEX, prompt=prompt, completion=completion)
                body = {"index": INDEX, "prompt": prompt, "completion": completion}
                seconds[HERE].append(measure_seconds(index.attribute, [query]))
                seconds[PLAIN].append(measure_seconds(post, body))
                # Eleven results, because the answer with ten is in the cache now.
                seconds[CLIENT].append(measure_seconds(client.attribute, INDEX, prompt, completion, top_k=11))

    print(f"{options.documents:,} documents, {options.queries} queries, one client, top 10 with text")
    print(f"{'':<16}{'median ms':>10}{'p95 ms':>10}")
    seconds = {name: times[WARM_UP_QUERIES:] for name, times in seconds.items()}
    for name, times in seconds.items():
        print(f"{name:<16}{percentile_ms(times, 50):>10.1f}{percentile_ms(times, 95):>10.1f}")
    overhead_ms = percentile_ms(seconds[PLAIN], 50) - percentile_ms(seconds[HERE], 50)
    print(f"overhead, median minus median: {overhead_ms:.1f} ms")
    parts = {
        part: statistics.median(timing[part] for timing in worker_timings[WARM_UP_QUERIES:]) for part in PARTS
    }
    print("as the worker measures: " + ", ".join(f"{part} {value:.1f} ms" for part, value in parts.items()))


if __name__ == "__main__":
    main()
