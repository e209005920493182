"""Collecting by one and by two Ray workers on this machine, and in one process, over the same corpus.

    python -m benchmarks.cluster [--documents 800] [--rounds 3]

GPT-NeoX of 8.4 M parameters (benchmarks.models), documents of eight sentences, p = 16. Each build is a process of its
own. A worker has one thread, as the process has in `1 thread`; `2 threads` is what a process has by itself on two
cores. Counted are the documents after the first progress of the stage `gradients`, so that what Ray takes to start its
workers is not in the rate; it is given beside it. That all make the same bytes is checked.
"""

import argparse
import json
import multiprocessing
import statistics
import tempfile
import time
from pathlib import Path

from benchmarks.models import make
from bergson_core import BuildSpec, build_index
from bergson_core.demo.synthetic_facts import make_corpus
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
"""Executor, threads of a process, workers."""


def make_sources(root: Path, documents: int) -> BuildSpec:
    """Writes the model and the corpus; the build of them."""
    from bergson_core.demo.train import fit_tokenizer

    texts = [document.text for document in make_corpus(people=400, seed=0).documents]
    bpe = fit_tokenizer(texts[:500], 4096)
    make("small").save_pretrained(root / "model")
    bpe.save_pretrained(root / "model")
    with (root / "documents.jsonl").open("w") as file:
        for k in range(documents):
            some = [texts[(SENTENCES * k + j) % len(texts)] for j in range(SENTENCES)]
            file.write(json.dumps({"text": " ".join(some)}) + "\n")
    return BuildSpec.model_validate(
        {
            "model": str(root / "model"),
            "dataset": {"path": str(root / "documents.jsonl")},
            "gradients": {"sample_size": 64},
            "search": {"min_recall": 1e-9},
        }
    )


def build(spec: BuildSpec, output: Path, shard_rows: int, way: str) -> None:
    """Builds, and writes beside the index how long it took to start, and documents a second from then on."""
    import torch

    executor, threads, workers = WAYS[way]
    torch.set_num_threads(threads)
    if workers:
        import ray

        ray.init(num_cpus=workers, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    seen: list[tuple[float, int]] = []

    def report(progress: Progress) -> None:
        if progress.stage == "gradients":
            seen.append((time.perf_counter(), progress.done))

    build_index(spec, output, report=report, executor=open_executor(executor), shard_rows=shard_rows)
    first, last = next(one for one in seen if one[1]), seen[-1]
    measured = {"starting_s": first[0] - seen[0][0], "rate": (last[1] - first[1]) / (last[0] - first[0])}
    output.with_suffix(".json").write_text(json.dumps(measured))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--documents", type=int, default=800)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    processes = multiprocessing.get_context("spawn")
    rates: dict[str, list[float]] = {way: [] for way in WAYS}
    shards: dict[int, object] = {}  # by threads: some processors round otherwise with two than with one
    with tempfile.TemporaryDirectory() as directory:
        root = Path(directory)
        spec, shard_rows = make_sources(root, options.documents), max(1, options.documents // SHARDS)
        for number in range(options.rounds):
            for way in WAYS:
                output = root / f"{way} {number}"
                process = processes.Process(target=build, args=(spec, output, shard_rows, way))
                process.start()
                process.join()
                found = json.loads(output.with_suffix(".json").read_text())
                manifest = read_manifest(output)
                made = [entry.files for entry in manifest.shards]
                first = shards.setdefault(WAYS[way][1], made)
                assert made == first, f"{way}: other bytes than before with as many threads"
                rates[way].append(found["rate"])
                tokens_a_document = manifest.tokens / manifest.rows
                print(
                    f"{way:<14} {found['rate']:7.2f} documents/s {found['rate'] * tokens_a_document:7,.0f} tokens/s, "
                    f"started in {found['starting_s']:4.1f} s",
                    flush=True,
                )
    for way, of in (
        ("2 Ray workers", "1 Ray worker"),
        ("1 Ray worker", "1 thread"),
        ("2 Ray workers", "2 threads"),
    ):
        ratios = [a / b for a, b in zip(rates[way], rates[of], strict=True)]
        listed = ", ".join(f"{one:.2f}" for one in ratios)
        print(f"{way} beside {of}: {statistics.median(ratios):.2f} ({listed})")


if __name__ == "__main__":
    main()
