"""Peak memory of builds of more and more short documents.

    python -m benchmarks.build_memory [--documents 20000 80000] [--sources mapped streaming] [--rows float16]

A GPT-NeoX of 80,000 parameters, documents of two sentences, p = 16: 2,048 numbers per row. "mapped" is a JSON Lines
file as it is read by default, "streaming" the same file with `streaming`. Each build runs in a process of its own.
"resident" is the peak of the process over its whole life (VmHWM), with imports and the mapped pages of files;
"anonymous" is the largest part of it that did not belong to a file (RssAnon), sampled 100 times a second. The allocator
is told to return large blocks at once: otherwise it keeps about 150 MiB of them, more or less from run to run.
"""

import os
import tempfile
import threading
import time
from dataclasses import dataclass
from pathlib import Path

from benchmarks.support.command_line import make_parser
from benchmarks.support.processes import run_in_new_process
from benchmarks.support.random_models import save_tiny_model
from benchmarks.support.text_files import write_sentence_pairs
from bergson_core import build_index
from bergson_core.indexing.estimation.cost_meter import resident_bytes
from bergson_core.schemas.build import BuildSpec, GradientSpec
from bergson_core.schemas.source import ColumnsSpec, DatasetSpec
from bergson_core.storage.manifest import read_manifest

SOURCES = ("mapped", "streaming")
SAMPLING_INTERVAL_S = 0.01


@dataclass(frozen=True)
class Measurement:
    """What a build took."""

    resident_bytes: int
    anonymous_bytes: int
    seconds: float


def measure_build(spec: BuildSpec, output: Path) -> Measurement:
    """Builds an index and returns what that took; runs in a process of its own."""
    finished, anonymous_bytes = threading.Event(), [0]

    def sample_memory() -> None:
        while not finished.wait(SAMPLING_INTERVAL_S):
            anonymous_bytes.append(resident_bytes("RssAnon"))

    sampler = threading.Thread(target=sample_memory, daemon=True)
    sampler.start()
    started = time.perf_counter()
    build_index(spec, output)
    seconds = time.perf_counter() - started
    finished.set()
    sampler.join()
    return Measurement(resident_bytes("VmHWM"), max(anonymous_bytes), seconds)


def main() -> None:
    """Runs the benchmark."""
    parser = make_parser(__doc__)
    parser.add_argument("--documents", type=int, nargs="+", default=[20_000, 80_000])
    parser.add_argument("--sources", nargs="+", choices=SOURCES, default=SOURCES)
    parser.add_argument("--rows", default="float16", help="how the index stores a row's numbers")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        root = Path(directory)
        # For the new processes. The second variable is glibc's.
        os.environ |= {"HF_DATASETS_CACHE": str(root / "cache"), "MALLOC_MMAP_THRESHOLD_": str(2**16)}
        model = save_tiny_model(root / "model")
        for source in options.sources:
            first_resident = None
            for documents in options.documents:
                path = write_sentence_pairs(root, documents)
                spec = BuildSpec(
                    model=str(model),
                    dataset=DatasetSpec(path=str(path), streaming=source == "streaming"),
                    columns=ColumnsSpec(id="id"),
                    gradients=GradientSpec(rows=options.rows),
                )
                output = root / f"{source}-{documents}"
                measured = run_in_new_process(measure_build, spec, output)
                first_resident = first_resident or measured.resident_bytes
                manifest = read_manifest(output)
                print(
                    f"{source:<10}{documents:>9,} documents"
                    f"  resident {measured.resident_bytes / 2**20:>6,.0f} MiB"
                    f"  {measured.resident_bytes / first_resident:.3f} of the first"
                    f"  anonymous {measured.anonymous_bytes / 2**20:>6,.0f} MiB"
                    f"  {documents / measured.seconds:>6,.0f} documents/s"
                    f"  index {manifest.total_bytes() / 2**20:>6,.0f} MiB, searched by {manifest.search.kind}",
                    flush=True,
                )


if __name__ == "__main__":
    main()
