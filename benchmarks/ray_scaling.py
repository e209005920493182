"""Documents a second of builds with one and with two Ray workers, and in one process, on this machine.

    python -m benchmarks.ray_scaling [--documents 400] [--rounds 2]

A GPT-NeoX of 8.4 M parameters, documents of eight sentences, p = 16. Each build runs in a process of its own. A Ray
worker has one thread, as the process of "1 thread" has; "2 threads" is what a process takes by itself on two cores. The
rate is that of the documents after the first progress of the stage `gradients`, so that the time that Ray needs to
start its workers does not count; that time is printed beside it. The benchmark fails if two builds with the same number
of threads write different bytes.
"""

import logging
import statistics
import tempfile
import time
from pathlib import Path

import ray
import torch

from benchmarks.support.command_line import make_parser
from benchmarks.support.processes import run_in_new_process
from benchmarks.support.random_models import save_random_model
from benchmarks.support.text_files import corpus_sentences, write_sentence_groups
from bergson_core import BuildSpec, build_index
from bergson_core.executors import open_executor
from bergson_core.schemas.build import ExecutorName
from bergson_core.schemas.results import Progress
from bergson_core.storage.manifest import read_manifest

SENTENCES, SHARDS = 8, 40
WAYS: dict[str, tuple[ExecutorName, int, int]] = {
    "1 thread": ("local", 1, 0),
    "2 threads": ("local", 2, 0),
    "1 Ray worker": ("ray", 1, 1),
    "2 Ray workers": ("ray", 1, 2),
}
"""Name → (executor, threads of a process, Ray workers)."""
COMPARISONS = (
    ("2 Ray workers", "1 Ray worker"),
    ("1 Ray worker", "1 thread"),
    ("2 Ray workers", "2 threads"),
)


def make_spec(root: Path, documents: int) -> BuildSpec:
    """Writes the model and the documents, and returns the spec of their build."""
    save_random_model(root / "model", "small", 4096, corpus_sentences()[:500])
    write_sentence_groups(root / "documents.jsonl", documents, SENTENCES)
    return BuildSpec.model_validate(
        {
            "model": str(root / "model"),
            "dataset": {"path": str(root / "documents.jsonl")},
            "gradients": {"sample_size": 64},
            "search": {"min_recall": 1e-9},
        }
    )


def measure_build(spec: BuildSpec, output: Path, shard_rows: int, way: str) -> tuple[float, float]:
    """Builds an index; returns (documents a second, seconds before that). Runs in a process of its own."""
    executor, threads, workers = WAYS[way]
    torch.set_num_threads(threads)
    if workers:
        ray.init(num_cpus=workers, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    progress_times: list[tuple[float, int]] = []

    def report(progress: Progress) -> None:
        if progress.stage == "gradients":
            progress_times.append((time.perf_counter(), progress.done))

    build_index(spec, output, report=report, executor=open_executor(executor), shard_rows=shard_rows)
    start_time, _ = progress_times[0]
    first_time, first_done = next(entry for entry in progress_times if entry[1])
    last_time, last_done = progress_times[-1]
    return (last_done - first_done) / (last_time - first_time), first_time - start_time


def main() -> None:
    """Runs the benchmark."""
    parser = make_parser(__doc__)
    parser.add_argument("--documents", type=int, default=400)
    parser.add_argument("--rounds", type=int, default=2)
    options = parser.parse_args()
    rates: dict[str, list[float]] = {way: [] for way in WAYS}
    # By number of threads: on some processors, two threads round differently from one.
    shard_files: dict[int, object] = {}
    with tempfile.TemporaryDirectory() as directory:
        root = Path(directory)
        spec, shard_rows = make_spec(root, options.documents), max(1, options.documents // SHARDS)
        for number in range(options.rounds):
            for way, (_, threads, _) in WAYS.items():
                output = root / f"{way} {number}"
                rate, starting_s = run_in_new_process(measure_build, spec, output, shard_rows, way)
                manifest = read_manifest(output)
                files = [entry.files for entry in manifest.shards]
                assert files == shard_files.setdefault(threads, files), f"{way}: other bytes than before"
                rates[way].append(rate)
                print(
                    f"{way:<14} {rate:7.2f} documents/s {rate * manifest.tokens / manifest.rows:7,.0f} tokens/s, "
                    f"started in {starting_s:4.1f} s",
                    flush=True,
                )
    for way, reference in COMPARISONS:
        ratios = [a / b for a, b in zip(rates[way], rates[reference], strict=True)]
        listed = ", ".join(f"{ratio:.2f}" for ratio in ratios)
        print(f"{way} / {reference}: {statistics.median(ratios):.2f} ({listed})")


if __name__ == "__main__":
    main()
