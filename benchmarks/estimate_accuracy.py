"""What a build was estimated to take, compared with what it takes.

    python -m benchmarks.estimate_accuracy [--cases "small, adafactor" ...]

The documents are of one to a hundred sentences, most of them short. The build runs in a process of its own. Its peak of
the disk is the largest size that the directory of the index was seen to have, looked at every 20 ms.
"""

import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.support.command_line import make_parser
from benchmarks.support.processes import run_in_new_process
from benchmarks.support.random_models import save_random_model
from benchmarks.support.text_files import write_documents_of_mixed_length
from bergson_core import build_index
from bergson_core.demo.synthetic_facts import make_corpus
from bergson_core.indexing.estimation.cost_meter import resident_bytes
from bergson_core.indexing.estimation.estimate import estimate_build
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
"""Name → (model, number of documents, settings of the build)."""
VOCABULARY = 2000
UNITS = {"tokens": 1, "index": 2**20, "peak of the disk": 2**20, "peak of memory": 2**20, "seconds": 1}
"""What is compared → the unit that it is printed in; sizes are in MiB."""


def measure_build(spec: BuildSpec, output: Path) -> tuple[float, int]:
    """Builds an index and returns (seconds, peak of the resident bytes); runs in a process of its own."""
    started = time.perf_counter()
    build_index(spec, output)
    return time.perf_counter() - started, resident_bytes("VmHWM")


def estimate(spec: BuildSpec) -> dict[str, float]:
    """Returns what the build is estimated to take."""
    estimated = estimate_build(spec)
    return {
        "tokens": estimated.tokens,
        "index": estimated.size_bytes.total,
        "peak of the disk": estimated.peak_disk_bytes,
        "peak of memory": estimated.peak_memory_bytes,
        "seconds": estimated.seconds,
    }


def measure(spec: BuildSpec, output: Path) -> dict[str, float]:
    """Returns what the build takes."""
    peak_disk = 0

    def watch_disk() -> None:
        nonlocal peak_disk
        peak_disk = max(peak_disk, directory_bytes(output))

    seconds, peak_memory = run_in_new_process(measure_build, spec, output, watch=watch_disk)
    manifest = read_manifest(output)
    return {
        "tokens": manifest.tokens,
        "index": manifest.total_bytes(),
        "peak of the disk": peak_disk,
        "peak of memory": peak_memory,
        "seconds": seconds,
    }


def directory_bytes(directory: Path) -> int:
    """Returns the size of all files of a directory that another process writes to."""
    total = 0
    for path in directory.rglob("*"):
        try:
            total += path.stat().st_size
        except FileNotFoundError:  # The file was removed or renamed after it was listed.
            continue
    return total


def main() -> None:
    """Runs the benchmark."""
    parser = make_parser(__doc__)
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--documents", type=int, help="number of documents, in the place of each case's own")
    options = parser.parse_args()
    sentences = [document.text for document in make_corpus(people=50, seed=0).documents]
    for case in options.cases:
        model, documents, settings = CASES[case]
        documents = options.documents or documents
        with tempfile.TemporaryDirectory() as directory:
            root = Path(directory)
            save_random_model(root / "model", model, VOCABULARY, sentences)
            write_documents_of_mixed_length(root / "documents.jsonl", documents)
            source = {"model": str(root / "model"), "dataset": {"path": str(root / "documents.jsonl")}}
            spec = BuildSpec.model_validate(source | settings)
            started = time.perf_counter()
            estimated = estimate(spec)
            seconds = time.perf_counter() - started
            print(f"{case}: {documents:,} documents, estimated in {seconds:.0f} s", flush=True)
            measured = measure(spec, root / "index")
        print(f"  {'':<18}{'estimated':>12}{'measured':>12}{'ratio':>8}")
        for name, unit in UNITS.items():
            print(
                f"  {name:<18}{estimated[name] / unit:>12,.1f}{measured[name] / unit:>12,.1f}"
                f"{estimated[name] / measured[name]:>8.3f}",
                flush=True,
            )


if __name__ == "__main__":
    main()
