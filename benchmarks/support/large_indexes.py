"""Indexes of any number of rows, and the gradients of queries to search them with.

Rows are synthetic (`synthetic_rows`), or those of the demo's model for pairs of sentences of its corpus:

    synthetic-float16   8,192 numbers, block norm, no preconditioner
    synthetic-sign      16,384 signs, block norm, no preconditioner
    demo-float16        p = 32: 8,192 numbers, kfac, block norm, preconditioner
    demo-sign           p = 45: 16,200 signs, kfac, block norm, preconditioner
"""

import time
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from benchmarks.support.demo_model import prepare_demo_files
from benchmarks.support.synthetic_rows import SyntheticRows
from benchmarks.support.text_files import write_sentence_pairs
from bergson_core import AttributionIndex, build_index
from bergson_core.demo.synthetic_facts import make_corpus
from bergson_core.gradients.row_collector import collect_rows
from bergson_core.indexing.build_context import always_confirm, ignore_progress
from bergson_core.indexing.publish import publish_manifest
from bergson_core.indexing.search_files import SearchFiles
from bergson_core.indexing.shard_builder import plan_shards, rows_per_shard
from bergson_core.schemas.build import BuildSpec, GradientSpec, ScoringSpec
from bergson_core.schemas.record import Record
from bergson_core.schemas.source import ColumnsSpec, DatasetSpec
from bergson_core.search.measuring.recall import RECALL_QUERY_COUNT, RecallQueries
from bergson_core.shards.shard import RowShape
from bergson_core.shards.shard_writer import ShardPosition, write_shard
from bergson_core.storage.document_table import make_document_table
from bergson_core.storage.manifest import FORMAT_VERSION, MANIFEST_FILE, Manifest, ModuleEntry, ProfileEntry
from bergson_core.tokens.batching import BUDGET_TOKENS
from bergson_core.tokens.tokenization import tokenize

SYNTHETIC_SHAPES = {
    "synthetic-float16": RowShape("float16", 32, 256),
    "synthetic-sign": RowShape("sign", 16, 1024),
}
DEMO_GRADIENTS = {
    "demo-float16": GradientSpec(normalizer="kfac", rows="float16", projection_dim=32),
    "demo-sign": GradientSpec(normalizer="kfac", rows="sign", projection_dim=45),
}
KINDS = (*SYNTHETIC_SHAPES, *DEMO_GRADIENTS)


def make_large_index(root: Path, kind: str, count: int) -> None:
    """Makes an index of `count` rows in the directory `root`, unless it holds one, and prints how long that took."""
    if (root / MANIFEST_FILE).exists():
        return
    root.mkdir(parents=True, exist_ok=True)
    if kind in SYNTHETIC_SHAPES:
        _make_synthetic_index(root, SYNTHETIC_SHAPES[kind], count)
    else:
        _build_demo_index(root, DEMO_GRADIENTS[kind], count)


def make_query_rows(root: Path, kind: str, index_rows: int, count: int) -> Float[Tensor, "q m d"]:
    """Returns the gradients of about `count` queries for the index of `index_rows` rows in the directory `root`."""
    if kind in SYNTHETIC_SHAPES:
        shape = SYNTHETIC_SHAPES[kind]
        return SyntheticRows(index_rows, shape.modules, shape.width).query_rows(count)
    index, queries = AttributionIndex.open(root), make_corpus(people=400, seed=0).queries
    queries = queries[:: len(queries) // count][:count]
    assert index.model.tokenizer is not None  # load_model always returns one
    prompts, completions = [query.prompt for query in queries], [query.completion for query in queries]
    tokens = tokenize(index.model.tokenizer, prompts, completions)
    rows, _ = collect_rows(index.collector, tokens, BUDGET_TOKENS)
    return torch.from_numpy(rows).reshape(len(rows), len(index.collector.slices), -1)


def _make_synthetic_index(root: Path, shape: RowShape, count: int) -> None:
    """Publishes an index of synthetic rows by those steps of a build that need no model."""
    rows = SyntheticRows(count, shape.modules, shape.width)
    spec = BuildSpec(
        model="synthetic",
        documents=({"text": "synthetic"},),
        gradients=GradientSpec(rows=shape.kind, projection_dim=round(shape.width**0.5)),
        scoring=ScoringSpec(preconditioner=False, normalize="block"),
    )
    shards = []
    for task in plan_shards(count, rows_per_shard(shape, count), ShardPosition(0, "synthetic")):
        blocks, scales = (part.numpy() for part in shape.codec.encode(rows.rows(task.numbers)))
        records = [Record(f"doc-{number}", "synthetic", None, {}) for number in task.numbers]
        documents = make_document_table(records, np.zeros(len(records)), [1] * len(records))
        shards.append(write_shard(root, task.name, blocks, scales, documents, task.position).accept())
    started = time.perf_counter()
    files = SearchFiles(root, spec, shape, shards)
    queries = RecallQueries(np.full(RECALL_QUERY_COUNT, -1), rows.query_rows(RECALL_QUERY_COUNT))
    search = files.choose_search(queries, lambda progress: None)
    print(f"search built and measured in {time.perf_counter() - started:,.0f} s", flush=True)
    manifest = Manifest(
        format_version=FORMAT_VERSION,
        generation=1,
        created_at="",
        spec=spec,
        fingerprint="",
        model_sha256="",
        modules=tuple(
            ModuleEntry(name=str(number), out_features=1, in_features=1) for number in range(shape.modules)
        ),
        coverage_percent=100,
        dimensions=shape.modules * shape.width,
        rows=count,
        tokens=count,
        skipped=0,
        numbered=count,
        files=(),
        shards=tuple(shards),
        profiles=(ProfileEntry(name="default", files=()),),
        search=search,
    )
    publish_manifest(manifest, files, ignore_progress, always_confirm)


def _build_demo_index(root: Path, gradients: GradientSpec, count: int) -> None:
    demo_directory = prepare_demo_files()
    spec = BuildSpec(
        model=str(demo_directory / "model"),
        dataset=DatasetSpec(path=str(write_sentence_pairs(root.parent, count))),
        columns=ColumnsSpec(id="id"),
        gradients=gradients,
        scoring=ScoringSpec(normalize="block"),
    )
    started = time.perf_counter()
    build_index(spec, root)
    print(f"index built in {time.perf_counter() - started:,.0f} s", flush=True)
