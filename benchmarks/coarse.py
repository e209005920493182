"""Does a coarse quantizer hold its recall? IVF with RaBitQ over an index's φ, beside the flat search.

    python -m benchmarks.coarse INDEX [--cells 512] [--kind made-float|demo-float]

INDEX is one of `benchmarks.search --keep`. The cells are found by k-means over 40 rows a cell. For each number of cells
that are looked into: the share of the ten best rows that are among as many candidates as the flat search takes, and
milliseconds of a query on one core.
"""

import argparse
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import torch

from benchmarks.search import BEST, questions_for
from bergson_core.gradients.preconditioner import Preconditioner
from bergson_core.search.faiss_index import QUERY_BITS, shard_features
from bergson_core.search.searcher import Searcher
from bergson_core.storage.layout import preconditioner_path
from bergson_core.storage.manifest import read_manifest


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("index", type=Path)
    parser.add_argument("--cells", type=int, default=512)
    parser.add_argument("--kind", choices=["made-float", "demo-float"], default="demo-float")
    options = parser.parse_args()
    root, manifest = options.index, read_manifest(options.index)
    searcher, scoring = Searcher.open(root, manifest), manifest.spec.scoring
    preconditioner = Preconditioner.load(preconditioner_path(root)) if scoring.preconditioner else None
    asked, _ = searcher.profiles["default"].prepare(questions_for(options.kind, root, manifest.rows))

    def phi() -> Iterator[torch.Tensor]:
        for shard in searcher.shards:
            for part, _ in shard_features(shard, preconditioner, scoring.normalize):
                yield part

    stride = max(1, manifest.rows // (40 * options.cells))
    sample = torch.cat([part[::stride] for part in phi()]).numpy()
    made: Any = faiss  # whose constructors are known at run time only
    quantizer = faiss.IndexFlatIP(manifest.dimensions)
    index = made.IndexIVFRaBitQ(quantizer, manifest.dimensions, options.cells, faiss.METRIC_INNER_PRODUCT)
    index.qb, index.cp.niter = QUERY_BITS, 10
    started = time.perf_counter()
    index.train(sample)
    print(
        f"{options.cells} cells from {len(sample):,} rows: {time.perf_counter() - started:.0f} s", flush=True
    )
    best, first = torch.empty(len(asked), 0), 0
    numbers = torch.empty(len(asked), 0, dtype=torch.long)
    started = time.perf_counter()
    for part in phi():
        index.add(part.numpy())
        best = torch.cat([best, asked @ part.mT], dim=1)
        numbers = torch.cat([numbers, torch.arange(first, first + len(part)).expand(len(asked), -1)], dim=1)
        best, kept = best.topk(BEST)
        numbers, first = numbers.gather(1, kept), first + len(part)
    print(f"added in {time.perf_counter() - started:.0f} s", flush=True)
    faiss.omp_set_num_threads(1)
    count = manifest.search.candidates
    for probes in (1, 4, 16, 64, 128, 256, options.cells):
        index.nprobe = probes
        started = time.perf_counter()
        found = np.concatenate([index.search(one[None], count)[1] for one in asked.numpy()])
        each = 1e3 * (time.perf_counter() - started) / len(asked)
        recall = (
            np.mean([len(np.intersect1d(*both)) for both in zip(numbers.numpy(), found, strict=True)]) / BEST
        )
        print(f"{probes:>4} of {options.cells} cells: recall@{BEST} {recall:.3f}, {each:.1f} ms", flush=True)


if __name__ == "__main__":
    main()
