"""Time, memory and recall of queries of a large index, compared with exact search by NumPy in float32.

    python -m benchmarks.large_index_search [synthetic-float16] [synthetic-sign] [demo-float16] [demo-sign]
        [--rows 100000] [--keep DIRECTORY]

`benchmarks.support.large_indexes` says what the kinds of rows are. The index is searched in a process that does nothing
else: 200 queries one by one, then in batches of 32. "mapped" is the part of the index's files that is in the memory of
that process after the single queries. NumPy multiplies a float32 matrix by the query and takes the ten largest; if the
matrix would take more than half of the available memory, or more than 9 GiB, NumPy gets a part of it and its time is
scaled. A result counts as found if its score is at least the exact tenth best.
"""

import statistics
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from benchmarks.support.command_line import make_parser
from benchmarks.support.large_indexes import KINDS, make_large_index, make_query_rows
from benchmarks.support.processes import run_in_new_process
from bergson_core.search.exact_scores import ExactScorer
from bergson_core.search.local_searcher import LocalSearcher
from bergson_core.search.searcher import SearchRequest
from bergson_core.storage.manifest import Manifest, read_manifest

QUERIES, BATCH_SIZE, TOP_K = 200, 32, 10
NUMPY_QUERIES, OPENINGS = 20, 5
MAX_NUMPY_BYTES = 9 * 2**30
CHUNK_ROWS = 1024
REQUEST = SearchRequest(TOP_K, "proponents", (), "default", None)


def measure_ms(calls: Iterable[Callable[[], object]]) -> list[float]:
    """Returns the milliseconds of each call."""
    times = []
    for call in calls:
        started = time.perf_counter()
        call()
        times.append(1e3 * (time.perf_counter() - started))
    return times


def measure_search(kind: str, root: Path, rows: int) -> None:
    """Searches the index, then with NumPy, and prints both; runs in a process of its own."""
    query_rows = make_query_rows(root, kind, rows, QUERIES)
    manifest = read_manifest(root)
    opening_ms = measure_ms([lambda: LocalSearcher.open(root, manifest)] * OPENINGS)
    searcher = LocalSearcher.open(root, manifest)
    searcher.search(query_rows[:1], [REQUEST])
    scores: list[list[float]] = []

    def search_one(query: Tensor) -> None:
        result, *_ = searcher.search(query[None], [REQUEST])
        scores.append([hit.row.score for hit in result.proponents or ()])

    single_ms = measure_ms(lambda query=query: search_one(query) for query in query_rows)
    mapped = mapped_bytes(root)
    batches = [batch for batch in query_rows.split(BATCH_SIZE) if len(batch) == BATCH_SIZE]
    batch_ms = measure_ms(
        lambda batch=batch: searcher.search(batch, [REQUEST] * BATCH_SIZE) for batch in batches
    )
    numpy_ms, numpy_rows = measure_numpy_ms(searcher, query_rows)
    thresholds = tenth_best_scores(searcher, query_rows)
    recall = np.mean(
        [np.mean(np.array(top) >= threshold) for top, threshold in zip(scores, thresholds, strict=True)]
    )

    print_sizes(manifest, mapped)
    print(f"opened in {statistics.median(opening_ms):.0f} ms ({len(manifest.shards)} shards)")
    median_ms = statistics.median(single_ms)
    print(f"single query: p50 {median_ms:.1f} ms, p95 {statistics.quantiles(single_ms, n=20)[-1]:.1f} ms")
    each_ms = statistics.median(batch_ms) / BATCH_SIZE
    print(
        f"batches of {BATCH_SIZE}: {each_ms:.1f} ms a query, {median_ms / each_ms:.2f} × the rate of single queries"
    )
    scaled = "" if numpy_rows == manifest.rows else f" (scaled from {numpy_rows:,} rows)"
    print(f"NumPy float32: {numpy_ms:.0f} ms{scaled}, {numpy_ms / median_ms:.1f} × a single query")
    print(f"recall@{TOP_K} after the exact scores: {recall:.4f}", flush=True)


def mapped_bytes(root: Path) -> dict[str, int]:
    """Returns how much of the files below `root` is in this process's memory, by the kind of file."""
    sizes, path = {"search": 0, "rows": 0, "other": 0}, ""
    for line in Path("/proc/self/smaps").read_text().splitlines():
        first_word = line.split(" ")[0]
        if "-" in first_word and ":" not in first_word:  # the first line of a mapping: addresses … path
            path = line.split(maxsplit=5)[-1]
        elif line.startswith("Rss:") and str(root) in path:
            kind = "search" if "/search/" in path else "rows" if "gradients.bin" in path else "other"
            sizes[kind] += 1024 * int(line.split()[1])
    return sizes


def print_sizes(manifest: Manifest, mapped: dict[str, int]) -> None:
    """Prints bytes a row on disk and in memory."""
    rows, float16_bytes = manifest.rows, 2 * manifest.dimensions
    shard_bytes = sum(file.bytes for shard in manifest.shards for file in shard.files) / rows
    search_bytes = sum(file.bytes for file in manifest.files if "search/" in file.path) / rows
    print(f"{rows:,} rows of {manifest.dimensions:,}: {manifest.search}")
    print(f"on disk, bytes a row: {shard_bytes:,.0f} of rows and texts, {search_bytes:,.0f} of search")
    print("mapped, bytes a row: " + ", ".join(f"{size / rows:,.0f} {kind}" for kind, size in mapped.items()))
    mapped_share = mapped["search"] / rows / float16_bytes
    print(f"search / float16 rows: {search_bytes / float16_bytes:.1%} on disk, {mapped_share:.1%} mapped")


def measure_numpy_ms(searcher: LocalSearcher, query_rows: Float[Tensor, "q m d"]) -> tuple[float, int]:
    """Returns (milliseconds of an exact search in NumPy, rows that it was measured with)."""
    manifest = searcher.manifest
    features, _ = searcher.profiles["default"].prepare_queries(query_rows[:NUMPY_QUERIES])
    max_bytes = min(MAX_NUMPY_BYTES, available_memory_bytes() // 2)
    rows = min(manifest.rows, max_bytes // (4 * manifest.dimensions))
    matrix, filled = np.empty((rows, manifest.dimensions), np.float32), 0
    for (
        shard
    ) in searcher.shards:  # The speed does not depend on the numbers: these are the rows as they are stored.
        part = shard.rows(slice(0, rows - filled)).flatten(1)
        matrix[filled : filled + len(part)] = part.numpy()
        filled += len(part)

    def search(query: np.ndarray) -> np.ndarray:
        scores = matrix @ query
        best = np.argpartition(-scores, TOP_K)[:TOP_K]
        return best[np.argsort(-scores[best])]

    search(features[0].numpy())
    times_ms = measure_ms(lambda query=query: search(query) for query in features.numpy())
    return statistics.median(times_ms) * manifest.rows / rows, rows


def available_memory_bytes() -> int:
    """Returns the memory that new processes can take without swapping."""
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable:"):
            return 1024 * int(line.split()[1])
    return MAX_NUMPY_BYTES


def tenth_best_scores(searcher: LocalSearcher, query_rows: Float[Tensor, "q m d"]) -> Float[np.ndarray, " q"]:
    """Returns the exact tenth best score of each query, less what rounding may make of it."""
    profile = searcher.profiles["default"]
    _, weights = profile.prepare_queries(query_rows)
    scorer = ExactScorer(searcher.shards, profile)
    best = torch.empty(len(query_rows), 0)
    for number, shard in enumerate(searcher.shards):
        for start in range(0, shard.entry.rows, CHUNK_ROWS):
            scores = scorer.score_range(number, slice(start, start + CHUNK_ROWS), weights.flatten(1).mT)
            best = torch.cat([best, scores.mT], dim=1).topk(TOP_K).values
    return (best[:, -1] - 1e-5 * best[:, -1].abs() - 1e-9).numpy()


def main() -> None:
    """Runs the benchmark."""
    parser = make_parser(__doc__)
    parser.add_argument("kinds", nargs="*", help=f"kinds of rows, by default all: {', '.join(KINDS)}")
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--keep", type=Path, help="directory where indexes are kept and taken from")
    options = parser.parse_args()
    if unknown := set(options.kinds) - set(KINDS):
        parser.error(f"unknown kind {', '.join(unknown)}; expected {', '.join(KINDS)}")
    with tempfile.TemporaryDirectory() as directory:
        for kind in options.kinds or KINDS:
            print(f"== {kind}", flush=True)
            root = (options.keep or Path(directory)) / f"{kind}-{options.rows}"
            make_large_index(root, kind, options.rows)
            run_in_new_process(measure_search, kind, root, options.rows)


if __name__ == "__main__":
    main()
