"""A query of a large index beside exact float32 NumPy: time, memory, and how many of the best ten are found.

    python -m benchmarks.search made-float | made-sign | demo-float | demo-sign [--rows 250000] [--keep DIRECTORY]

Rows are made (`made_rows`: 8,192 numbers in float16, or 16,384 signs, as they are), or those of the demo's model for
pairs of sentences of its corpus (p = 32 in float16: 8,192 numbers; p = 45 as signs: 16,200; kfac, block norm, C); the
questions are then the demo's own. The index is searched in a process that does nothing else: 200 questions one by one,
then in batches of 32. `mapped` is what of its files is in that process's memory after the single questions. NumPy
multiplies a matrix of float32 by the query and takes the ten largest; where it does not fit in memory, a part of it,
scaled. A result counts as found if it scores no less than the exact tenth best.
"""

import argparse
import multiprocessing
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch

from benchmarks.made_rows import MadeRows
from bergson_core import AttributionIndex, build_index
from bergson_core.indexing.search_files import SearchFiles
from bergson_core.indexing.shard_builder import plan_shards, rows_per_shard
from bergson_core.schemas.build import BuildSpec, ColumnsSpec, DatasetSpec, GradientSpec, ScoringSpec
from bergson_core.schemas.record import Record
from bergson_core.search.profile import Profile
from bergson_core.search.recall import RECALL_QUERY_COUNT, RecallQueries
from bergson_core.search.searcher import Searcher, SearchRequest
from bergson_core.shards.shard import RowShape, ShardPosition, write_shard
from bergson_core.storage.document_table import make_document_table
from bergson_core.storage.manifest import FORMAT_VERSION, Manifest, ModuleEntry, ProfileEntry, read_manifest

QUESTIONS, BATCH, BEST = 200, 32, 10
SHAPES = {"made-float": RowShape("float16", 32, 256), "made-sign": RowShape("sign", 16, 1024)}
NUMPY_BYTES = 9 * 2**30


def make_index(root: Path, rows: MadeRows, shape: RowShape) -> None:
    """Publishes an index of made rows by the steps of a build that follow the model."""
    spec = BuildSpec(
        model="made",
        documents=({"text": "made"},),
        gradients=GradientSpec(rows=shape.kind, projection_dim=round(shape.width**0.5)),
        scoring=ScoringSpec(preconditioner=False, normalize="block"),
    )
    shards = []
    for task in plan_shards(rows.count, rows_per_shard(shape, rows.count), ShardPosition(0, "made")):
        blocks, scales = (part.numpy() for part in shape.codec.encode(rows.rows(task.numbers)))
        records = [Record(f"doc-{number}", "made", None, {}) for number in task.numbers]
        texts = make_document_table(records, np.zeros(len(records)), [1] * len(records))
        shards.append(write_shard(root, task.name, blocks, scales, texts, task.position).accept())
    started = time.perf_counter()
    parts = SearchFiles(root, spec, shape, shards)
    found = parts.measured(
        RecallQueries(np.full(RECALL_QUERY_COUNT, -1), rows.questions(RECALL_QUERY_COUNT)),
        lambda progress: None,
    )
    print(f"search built and measured in {time.perf_counter() - started:,.0f} s", flush=True)
    modules = tuple(ModuleEntry(name=str(k), out_features=1, in_features=1) for k in range(shape.modules))
    manifest = Manifest(
        format_version=FORMAT_VERSION,
        generation=1,
        created_at="",
        spec=spec,
        fingerprint="",
        model_sha256="",
        modules=modules,
        coverage_percent=100,
        dimensions=shape.modules * shape.width,
        rows=rows.count,
        tokens=rows.count,
        skipped=0,
        numbered=rows.count,
        files=(),
        shards=tuple(shards),
        profiles=(ProfileEntry(name="default", files=()),),
        search=found,
    )
    parts.publish(manifest, lambda: None)


def build_demo(root: Path, count: int, kind: str) -> None:
    """Builds an index of the demo's corpus enlarged with the demo's model."""
    from benchmarks.memory import make_sources
    from bergson_core.demo.model import train_demo_model
    from bergson_core.demo.synthetic_facts import make_corpus

    train_demo_model(make_corpus(people=400, seed=0), root.parent / "model")
    rows, projection = ("sign", 45) if kind == "sign" else ("float16", 32)
    spec = BuildSpec(
        model=str(root.parent / "model"),
        dataset=DatasetSpec(path=str(make_sources(root.parent, count))),
        columns=ColumnsSpec(id="id"),
        gradients=GradientSpec(normalizer="kfac", rows=rows, projection_dim=projection),
        scoring=ScoringSpec(normalize="block"),
    )
    started = time.perf_counter()
    build_index(spec, root)
    print(f"built in {time.perf_counter() - started:,.0f} s", flush=True)


def demo_questions(root: Path) -> torch.Tensor:
    """Gradients [q, m, d] of the demo's questions."""
    from bergson_core.data.batching import tokenize
    from bergson_core.demo.synthetic_facts import make_corpus
    from bergson_core.gradients.row_collector import collect_rows

    index, facts = AttributionIndex.open(root), make_corpus(people=400, seed=0).queries
    chosen = facts[:: len(facts) // QUESTIONS][:QUESTIONS]
    assert index.model.tokenizer is not None
    prompts, completions = [fact.prompt for fact in chosen], [fact.completion for fact in chosen]
    tokens = tokenize(index.model.tokenizer, prompts, completions)
    rows, _ = collect_rows(index.collector, tokens, 4096)
    return torch.from_numpy(rows).reshape(len(rows), len(index.collector.slices), -1)


def timed(calls: Iterator[Callable[[], object]]) -> list[float]:
    """Milliseconds of each call."""
    seconds = []
    for call in calls:
        started = time.perf_counter()
        call()
        seconds.append(1e3 * (time.perf_counter() - started))
    return seconds


def mapped_bytes(root: Path) -> dict[str, int]:
    """Bytes of files below `root` that are in this process's memory, by what they are."""
    found, path = {"search": 0, "rows": 0, "other": 0}, ""
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if "-" in line.split(" ")[0] and ":" not in line.split(" ")[0]:
            path = line.split(maxsplit=5)[-1]
        elif line.startswith("Rss:") and str(root) in path:
            kind = "search" if "/search/" in path else "rows" if "gradients.bin" in path else "other"
            found[kind] += 1024 * int(line.split()[1])
    return found


def ask(root: Path, questions: torch.Tensor) -> None:
    """Searches the index, then NumPy, and prints both."""
    manifest = read_manifest(root)
    opening = timed(iter([lambda: Searcher.open(root, manifest)] * 5))
    searcher, asked = Searcher.open(root, manifest), SearchRequest(BEST, "proponents", (), "default", None)
    searcher.search(questions[:1], [asked])
    results: list[list[float]] = []

    def single(question: torch.Tensor) -> None:
        found, *_ = searcher.search(question[None], [asked])
        results.append([hit.row.score for hit in found.proponents or ()])

    alone = timed(lambda q=question: single(q) for question in questions)
    memory = mapped_bytes(root)
    batches = [some for some in questions.split(BATCH) if len(some) == BATCH]
    together = timed(lambda b=batch: searcher.search(b, [asked] * BATCH) for batch in batches)
    exact, scaled = numpy_beside(searcher, questions)
    least = true_tenth(searcher, questions)
    found = np.mean([np.mean(np.array(one) >= least[k]) for k, one in enumerate(results)])
    median, rows = statistics.median(alone), manifest.rows
    fp16 = 2 * manifest.dimensions
    rows_bytes = sum(file.bytes for shard in manifest.shards for file in shard.files) / rows
    search_bytes = sum(file.bytes for file in manifest.files if "search/" in file.path) / rows
    print(f"{rows:,} rows of {manifest.dimensions:,}: {manifest.search}")
    print(f"opened in {statistics.median(opening):.0f} ms ({len(manifest.shards)} shards)")
    print(f"on disk, bytes a row: {rows_bytes:,.0f} of rows and texts, {search_bytes:,.0f} of search")
    print("mapped, bytes a row: " + ", ".join(f"{size / rows:,.0f} {name}" for name, size in memory.items()))
    print(
        f"search / float16 rows: {search_bytes / fp16:.1%} on disk, {memory['search'] / rows / fp16:.1%} mapped"
    )
    print(f"single: p50 {median:.1f} ms, p95 {statistics.quantiles(alone, n=20)[-1]:.1f} ms")
    each = statistics.median(together) / BATCH
    print(f"batches of {BATCH}: {each:.1f} ms a query, {median / each:.2f} x the rate of single ones")
    print(f"NumPy float32: {exact:.0f} ms{scaled}, {exact / median:.1f} x a single one")
    print(f"recall@{BEST} after the exact scores: {found:.4f}", flush=True)


def numpy_beside(searcher: Searcher, questions: torch.Tensor) -> tuple[float, str]:
    """(milliseconds of exact search in NumPy, "" or how much of the rows was scaled)."""
    manifest, profile = searcher.manifest, searcher.profiles["default"]
    asked, _ = profile.prepare_queries(questions[:20])
    fitting = min(manifest.rows, NUMPY_BYTES // (4 * manifest.dimensions))
    matrix, filled = np.empty((fitting, manifest.dimensions), np.float32), 0
    for shard in searcher.shards:  # the numbers matter to nobody's speed: rows as they are stored
        part = shard.rows(slice(0, fitting - filled)).flatten(1)
        matrix[filled : filled + len(part)] = part.numpy()
        filled += len(part)

    def exact(query: np.ndarray) -> np.ndarray:
        scores = matrix @ query
        best = np.argpartition(-scores, BEST)[:BEST]
        return best[np.argsort(-scores[best])]

    exact(asked[0].numpy())
    spent = statistics.median(timed(lambda q=query: exact(q) for query in asked.numpy()))
    share = fitting / manifest.rows
    return spent / share, "" if share == 1 else f" scaled from {fitting:,} rows"


def true_tenth(searcher: Searcher, questions: torch.Tensor) -> np.ndarray:
    """The tenth best exact score [q] of each question, less rounding."""
    profile: Profile = searcher.profiles["default"]
    _, weights = profile.prepare_queries(questions)
    best = torch.empty(len(questions), 0)
    for number, shard in enumerate(searcher.shards):
        for start in range(0, shard.entry.rows, 1024):
            scores = profile.scores(number, shard, slice(start, start + 1024), weights.flatten(1).mT)
            best = torch.cat([best, scores.mT], dim=1).topk(BEST).values
    return (best[:, -1] - 1e-5 * best[:, -1].abs() - 1e-9).numpy()


def questions_for(kind: str, root: Path, count: int) -> torch.Tensor:
    """Gradients [q, m, d] to ask the index of `count` rows in `root` with."""
    if kind not in SHAPES:
        return demo_questions(root)
    shape = SHAPES[kind]
    return MadeRows(count, shape.modules, shape.width).questions(QUESTIONS)


def run(kind: str, root: Path, count: int) -> None:
    """In a process of its own."""
    ask(root, questions_for(kind, root, count))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    kinds = ("made-float", "made-sign", "demo-float", "demo-sign")
    parser.add_argument("kinds", nargs="*", default=kinds)
    parser.add_argument("--rows", type=int, default=250_000)
    parser.add_argument("--keep", type=Path, help="where indexes are kept, and taken from")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        for kind in options.kinds:
            print(f"== {kind}", flush=True)
            root = (options.keep or Path(directory)) / f"{kind}-{options.rows}"
            if not (root / "manifest.json").exists():
                root.mkdir(parents=True, exist_ok=True)
                if kind in SHAPES:
                    shape = SHAPES[kind]
                    make_index(root, MadeRows(options.rows, shape.modules, shape.width), shape)
                else:
                    build_demo(root, options.rows, kind.removeprefix("demo-"))
            process = multiprocessing.get_context("spawn").Process(
                target=run, args=(kind, root, options.rows)
            )
            process.start()
            process.join()


if __name__ == "__main__":
    main()
