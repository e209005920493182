"""Recall and time of an IVF index with RaBitQ over the features of an index, which was tried beside the flat search.

    python -m benchmarks.ivf_recall [--rows 100000] [--cells 256] [--kind synthetic-float16] [--index DIRECTORY]

The cells are found by k-means over 40 rows a cell. For each number of cells that are searched, the benchmark prints the
share of the ten best rows that are among as many candidates as the flat search takes, and the milliseconds of a query
on one core. The index is made here, or is one of `benchmarks.large_index_search --keep`. docs/benchmarks.md has the
results for 250,000 rows and 512 cells, which take a quarter of an hour to fill.
"""

import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from benchmarks.support.command_line import make_parser
from benchmarks.support.large_indexes import make_large_index, make_query_rows
from bergson_core.gradients.preconditioner import Preconditioner
from bergson_core.search.faiss_index import QUERY_BITS
from bergson_core.search.features import iter_shard_features
from bergson_core.search.local_searcher import LocalSearcher
from bergson_core.storage.layout import preconditioner_path
from bergson_core.storage.manifest import read_manifest

QUERIES, TOP_K = 200, 10
ROWS_PER_CELL = 40
KMEANS_ITERATIONS = 10
KINDS = ("synthetic-float16", "demo-float16")


def iter_features(searcher: LocalSearcher, root: Path) -> Iterator[Float[Tensor, "n D"]]:
    """Yields the features of the rows of an index, in order and in chunks."""
    scoring = searcher.manifest.spec.scoring
    preconditioner = Preconditioner.load(preconditioner_path(root)) if scoring.preconditioner else None
    for shard in searcher.shards:
        for features, _ in iter_shard_features(shard, preconditioner, scoring.normalize):
            yield features


def fill_index(
    ivf_index: Any, searcher: LocalSearcher, root: Path, query_features: Float[Tensor, "q D"]
) -> Int[np.ndarray, "q k"]:
    """Adds all rows to the IVF index; returns the numbers of the ten exact best rows of each query."""
    best_scores, first = torch.empty(len(query_features), 0), 0
    best_numbers = torch.empty(len(query_features), 0, dtype=torch.long)
    for features in iter_features(searcher, root):
        ivf_index.add(features.numpy())
        numbers = torch.arange(first, first + len(features)).expand(len(query_features), -1)
        best_numbers = torch.cat([best_numbers, numbers], dim=1)
        best_scores, order = torch.cat([best_scores, query_features @ features.mT], dim=1).topk(TOP_K)
        best_numbers, first = best_numbers.gather(1, order), first + len(features)
    return best_numbers.numpy()


def measure_ivf(root: Path, kind: str, cells: int) -> None:
    """Makes an IVF index of the rows and prints its recall and time."""
    manifest = read_manifest(root)
    searcher = LocalSearcher.open(root, manifest)
    query_rows = make_query_rows(root, kind, manifest.rows, QUERIES)
    query_features, _ = searcher.profiles["default"].prepare_queries(query_rows)
    stride = max(1, manifest.rows // (ROWS_PER_CELL * cells))
    sample = torch.cat([features[::stride] for features in iter_features(searcher, root)]).numpy()
    untyped_faiss: Any = faiss  # whose constructors pyright does not know
    quantizer = faiss.IndexFlatIP(manifest.dimensions)
    ivf_index = untyped_faiss.IndexIVFRaBitQ(
        quantizer, manifest.dimensions, cells, faiss.METRIC_INNER_PRODUCT
    )
    ivf_index.qb, ivf_index.cp.niter = QUERY_BITS, KMEANS_ITERATIONS
    started = time.perf_counter()
    ivf_index.train(sample)
    print(f"{cells} cells from {len(sample):,} rows: {time.perf_counter() - started:.0f} s", flush=True)
    started = time.perf_counter()
    exact_numbers = fill_index(ivf_index, searcher, root, query_features)
    print(f"added in {time.perf_counter() - started:.0f} s", flush=True)
    faiss.omp_set_num_threads(1)
    count = manifest.search.candidates
    for probes in (*(number for number in (1, 4, 16, 64, 128, 256) if number < cells), cells):
        ivf_index.nprobe = probes
        started = time.perf_counter()
        numbers = np.concatenate(
            [ivf_index.search(query[None], count)[1] for query in query_features.numpy()]
        )
        each_ms = 1e3 * (time.perf_counter() - started) / len(query_features)
        hits = [len(np.intersect1d(*pair)) for pair in zip(exact_numbers, numbers, strict=True)]
        recall = np.mean(hits) / TOP_K
        print(f"{probes:>4} of {cells} cells: recall@{TOP_K} {recall:.3f}, {each_ms:.1f} ms", flush=True)


def main() -> None:
    """Runs the benchmark."""
    parser = make_parser(__doc__)
    parser.add_argument("--rows", type=int, default=100_000, help="rows of the index that is made")
    parser.add_argument("--cells", type=int, default=256)
    parser.add_argument("--kind", choices=KINDS, default=KINDS[0])
    parser.add_argument(
        "--index", type=Path, help="directory of an index of this kind, which is not made then"
    )
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        root = options.index or Path(directory) / "index"
        if options.index is None:
            make_large_index(root, options.kind, options.rows)
        measure_ivf(root, options.kind, options.cells)


if __name__ == "__main__":
    main()
