"""What a build was estimated to take beside what it takes, each in a process of its own.

    python -m benchmarks.estimating [--cases "small, adafactor" ...]

Documents are some facts each, joined: their lengths have a long tail. The peak of the disk is what the directory of the
index was seen to hold at most, looked at every 20 ms.
"""

import argparse
import json
import multiprocessing
import random
import tempfile
import time
from pathlib import Path
from typing import Any

from bergson_core.demo.synthetic_facts import make_corpus
from bergson_core.indexing.estimate import estimate_build
from bergson_core.schemas.build import BuildSpec
from bergson_core.storage.manifest import read_manifest

CASES: dict[str, tuple[str, int, dict[str, Any]]] = {
    "small, adafactor": ("small", 2000, {}),
    "small, kfac, sign, p = 32, block": (
        "small",
        1500,
        {
            "gradients": {"normalizer": "kfac", "rows": "sign", "projection_dim": 32},
            "scoring": {"normalize": "block"},
        },
    ),
    "small, adam, int8, p = 32, no C": (
        "small",
        1500,
        {
            "gradients": {"normalizer": "adam", "rows": "int8", "projection_dim": 32, "sample_size": 512},
            "scoring": {"preconditioner": False},
        },
    ),
    "neox-160m, adafactor": ("neox-160m", 300, {"gradients": {"sample_size": 100}}),
}
"""Model, documents and settings."""


def make_documents(path: Path, count: int) -> None:
    """One document a line, of one fact to a hundred."""
    texts = [document.text for document in make_corpus(people=400, seed=0).documents]
    rng = random.Random(0)
    with path.open("w") as file:
        for _ in range(count):
            facts = rng.choices(texts, k=min(100, 1 + int(rng.lognormvariate(0.5, 1))))
            file.write(json.dumps({"text": " ".join(facts)}) + "\n")


def make_model(directory: Path, name: str) -> None:
    """Saves a model of random weights with a tokenizer of the corpus."""
    from benchmarks import models
    from bergson_core.demo.train import fit_tokenizer

    models.make(name).save_pretrained(directory)
    fit_tokenizer(
        [document.text for document in make_corpus(people=50, seed=0).documents], 2000
    ).save_pretrained(directory)


def build(spec: BuildSpec, output: Path, results: Any) -> None:
    """Builds, and says the seconds that it took and the peak of the resident bytes."""
    from bergson_core import build_index
    from bergson_core.indexing.cost_meter import resident_bytes

    started = time.perf_counter()
    build_index(spec, output)
    results.put((time.perf_counter() - started, resident_bytes("VmHWM")))


def built(spec: BuildSpec, output: Path) -> dict[str, float]:
    """What a build took: bytes, tokens, seconds."""
    context = multiprocessing.get_context("spawn")
    results = context.Queue()
    process = context.Process(target=build, args=(spec, output, results))
    process.start()
    peak_disk = 0
    while process.is_alive():
        peak_disk = max(peak_disk, size_of(output))
        time.sleep(0.02)
    seconds, peak_memory = results.get(timeout=10)
    manifest = read_manifest(output)
    return {
        "tokens": manifest.tokens,
        "index": manifest.total_bytes(),
        "peak of the disk": peak_disk,
        "peak of memory": peak_memory,
        "seconds": seconds,
    }


def size_of(directory: Path) -> int:
    total = 0
    for path in directory.rglob("*"):
        try:
            total += path.stat().st_size
        except FileNotFoundError:  # it had another name
            continue
    return total


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES))
    options = parser.parse_args()
    for case in options.cases:
        name, documents, settings = CASES[case]
        with tempfile.TemporaryDirectory() as directory:
            root = Path(directory)
            make_model(root / "model", name)
            make_documents(root / "documents.jsonl", documents)
            source = {"model": str(root / "model"), "dataset": {"path": str(root / "documents.jsonl")}}
            spec = BuildSpec.model_validate(source | settings)
            started = time.perf_counter()
            estimate = estimate_build(spec)
            took = time.perf_counter() - started
            print(f"{case}: {documents:,} documents, estimated in {took:.0f} s", flush=True)
            estimated = {
                "tokens": estimate.tokens,
                "index": estimate.size_bytes.total,
                "peak of the disk": estimate.peak_disk_bytes,
                "peak of memory": estimate.peak_memory_bytes,
                "seconds": estimate.seconds,
            }
            real = built(spec, root / "index")
        for what, value in real.items():
            unit = {"tokens": 1, "seconds": 1}.get(what, 2**20)
            print(
                f"  {what:<18}{estimated[what] / unit:>12,.1f}{value / unit:>12,.1f}"
                f"{estimated[what] / value:>8.3f}",
                flush=True,
            )


if __name__ == "__main__":
    main()
