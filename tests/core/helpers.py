"""Helpers of the core's tests: specs, queries, files, and scores that are computed from their definitions."""

import json
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from datasets import Dataset, DatasetDict

from bergson_core import AttributionIndex
from bergson_core.data.documents import load_documents
from bergson_core.data.streaming import load_documents_streaming
from bergson_core.errors import (
    Cancelled,
    ColumnNotFound,
    DatasetNotFound,
    InvalidInput,
    ModelNotFound,
    TooLong,
)
from bergson_core.gradients.normalizers.moments import KFAC_DAMPING
from bergson_core.gradients.processor import GradientProcessor
from bergson_core.gradients.row_collector import RowCollector
from bergson_core.models.loading import load_model
from bergson_core.schemas.build import AppendSpec, BuildSpec, GradientSpec
from bergson_core.schemas.query import AttributionQuery
from bergson_core.schemas.record import Record
from bergson_core.schemas.results import Answer, Progress
from bergson_core.schemas.source import ColumnsSpec, DatasetSpec
from bergson_core.storage.document_table import make_document_table, read_metadata
from bergson_core.storage.manifest import read_manifest
from bergson_core.storage.metadata_types import column_types
from bergson_core.tokens.batching import iter_batches
from bergson_core.tokens.document_tokens import tokenize_records
from bergson_core.tokens.tokenization import Tokens, tokenize


def make_spec(sources: Path, **changes: object) -> BuildSpec:
    """Returns the build of the fixture `index`, with some fields changed."""
    settings = {
        "model": str(sources / "model"),
        "dataset": DatasetSpec(path=str(sources / "documents.jsonl")),
        "columns": ColumnsSpec(id="id", metadata=("source", "number")),
        "gradients": GradientSpec(projection_dim=4),
    }
    return BuildSpec.model_validate(settings | changes)


def with_default_columns(dataset: DatasetSpec) -> dict:
    """Returns the fields of a build that reads the column `text` of this dataset."""
    return {"dataset": dataset, "columns": ColumnsSpec()}


def write_rows(directory: Path, *rows: object) -> DatasetSpec:
    """Writes a JSONL file with these rows, and returns the dataset."""
    path = directory / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return DatasetSpec(path=str(path))


def write_docx(directory: Path) -> DatasetSpec:
    """Writes a file of a type that no dataset has, and returns the dataset."""
    (directory / "notes.docx").write_text("x")
    return DatasetSpec(path=str(directory / "notes.docx"))


def save_dataset(dataset: Dataset, directory, kind: str) -> str:
    """Saves a dataset as a file or a directory of this kind, and returns its path."""
    path = str(directory / f"rows.{kind}")
    writers = {
        "json": dataset.to_json,
        "jsonl": dataset.to_json,
        "csv": dataset.to_csv,
        "parquet": dataset.to_parquet,
    }
    if kind == "directory":
        dataset.save_to_disk(path)
    elif kind == "splits":
        DatasetDict({"train": dataset, "test": dataset.select([0])}).save_to_disk(path)
    else:
        writers[kind](path)
    return path


def make_metadata_shards(*parts: Sequence[dict[str, Any]], recorded: bool = True) -> tuple[list[Any], Any]:
    """Returns what a filter reads of shards without rows, and of their manifest.

    Args:
        parts: The metadata of the documents of each shard.
        recorded: Whether the shards have recorded the types of their columns, as they do since release 0.2.0.
    """
    shards = []
    for metadata in parts:
        records = [Record(str(number), "a", None, values) for number, values in enumerate(metadata)]
        documents = make_document_table(records, np.zeros(len(records)), [1] * len(records))
        types = column_types(read_metadata(documents)) if recorded else None
        entry = SimpleNamespace(rows=len(records), metadata_types=types)
        shards.append(SimpleNamespace(entry=entry, documents=documents))
    columns = ColumnsSpec(metadata=tuple(parts[0][0]))
    manifest = SimpleNamespace(
        spec=SimpleNamespace(columns=columns), shards=[shard.entry for shard in shards]
    )
    return shards, manifest


def read_records(path: Path | str, columns: ColumnsSpec, **dataset: object) -> list[Record]:
    """Returns the documents of a dataset, which have to be the same however it is opened."""
    source = DatasetSpec.model_validate({"path": str(path), **dataset})
    spec = BuildSpec(model="any", dataset=source, columns=columns)
    streamed = spec.model_copy(update={"dataset": source.model_copy(update={"streaming": True})})
    in_memory = load_documents(spec)
    records = in_memory.read(range(len(in_memory)))
    for build in (spec, streamed):
        with TemporaryDirectory() as root:
            documents = load_documents_streaming(build, Path(root), lambda _: None)
            assert documents.read(list(range(len(documents)))) == records
    return records


def write_lines(path: Path, *rows: object) -> Path:
    """Writes rows as JSON, one a line, and returns the path."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


INVALID_BUILDS = {
    "no such model": (ModelNotFound, "no model directory", lambda d: {"model": str(d / "nothing")}),
    "an empty model directory": (ModelNotFound, "config.json", lambda d: {"model": str(d)}),
    "no such file": (
        DatasetNotFound,
        "no dataset",
        lambda d: {"dataset": DatasetSpec(path=str(d / "x.jsonl"))},
    ),
    "a file of no known type": (DatasetNotFound, "jsonl", lambda d: {"dataset": write_docx(d)}),
    "a missing column": (ColumnNotFound, "it has id", lambda d: {"columns": ColumnsSpec(prompt="body")}),
    "a missing completion": (
        ColumnNotFound,
        "'answer'",
        lambda d: {"columns": ColumnsSpec(completion="answer")},
    ),
    "an empty file": (InvalidInput, "empty", lambda d: {"dataset": write_rows(d)}),
    "a row that is not text": (
        InvalidInput,
        "row 1",
        lambda d: with_default_columns(write_rows(d, {"text": "a b"}, {"text": None})),
    ),
    "rows of numbers": (
        InvalidInput,
        "int, expected text",
        lambda d: with_default_columns(write_rows(d, {"text": 3})),
    ),
    "an id twice": (
        InvalidInput,
        "'x'",
        lambda d: {
            "dataset": write_rows(d, {"text": "a b", "id": "x"}, {"text": "c d", "id": "x"}),
            "columns": ColumnsSpec(id="id"),
        },
    ),
    "an id that no URL can hold": (
        InvalidInput,
        "'..'",
        lambda d: {"dataset": write_rows(d, {"text": "a b", "id": ".."}), "columns": ColumnsSpec(id="id")},
    ),
    "a document too long": (
        TooLong,
        "document '0'",
        lambda d: with_default_columns(write_rows(d, {"text": "a long text " * 90})),
    ),
    "more tokens than the model takes": (
        InvalidInput,
        "64",
        lambda d: {"gradients": GradientSpec(max_tokens=65)},
    ),
    "modules that are not there": (
        InvalidInput,
        "track",
        lambda d: {"gradients": GradientSpec(modules="conv")},
    ),
}
"""The error, its message, and a function of a directory that gives the fields of the build to change."""


QUERIES = [(f"Person {k % 7} works", f" for company {k % 3}.") for k in range(12)]
"""Prompts and completions."""


def query(
    prompt: str = "Person 3 lives in", completion: str = " city 1.", **changes: object
) -> AttributionQuery:
    """Returns a query of the index `facts`, with some fields changed."""
    return AttributionQuery.model_validate(
        {"index": "facts", "prompt": prompt, "completion": completion, **changes}
    )


def stop_after(documents: int):
    """Returns a callback that stops a build after it has run more than this many documents."""

    def report(progress: Progress) -> None:
        if progress.stage == "gradients" and progress.done > documents:
            raise Cancelled("stopped by the test")

    return report


def file_hashes(index: Path) -> dict[str, str]:
    """Returns the sha256 of the files of an index, by path."""
    manifest = read_manifest(index)
    entries = [entry for part in (manifest, *manifest.shards, *manifest.profiles) for entry in part.files]
    return {entry.path: entry.sha256 for entry in entries if not entry.path.endswith("done")}


def copy_weights(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Returns a copy of the weights of a model, by name."""
    return {name: weight.detach().clone() for name, weight in model.named_parameters()}


CHAT_TEMPLATE = (
    "{% for message in messages %}<{{ message.role }}>"
    "{% if message.role == 'assistant' %}{% generation %}{{ message.content }}{% endgeneration %}"
    "{% else %}{{ message.content }}{% endif %}{% endfor %}"
)


CHAT = [
    {"role": "user", "content": "Person 3 lives where?"},
    {"role": "assistant", "content": "city 1."},
    {"role": "user", "content": "and works for?"},
    {"role": "assistant", "content": "company 2."},
]


SCORING_CASES = [
    ("float16", "row", True),
    ("float16", "block", False),
    ("float16", "none", True),
    ("int8", "block", True),
    ("int8", "none", False),
    ("sign", "block", True),
    ("sign", "row", False),
]
"""(rows, normalize, preconditioner) of builds that score in different ways."""


def rows_by_definition(path, spec) -> torch.Tensor:
    """Returns the rows of all documents, [n, m, d], in float64 and never stored."""
    model = load_model(spec.model, dtype="float64")
    collector = RowCollector(model, GradientProcessor.load(path / "statistics"))
    documents = load_documents(spec)
    tokens = tokenize_records(model.tokenizer, documents.read(range(len(documents))))
    rows = torch.zeros(len(tokens), collector.dimensions, dtype=torch.float64)
    for batch in iter_batches(tokens, 10**6):
        rows[batch.indices], _ = collector.collect(batch)
    return rows.reshape(len(tokens), len(collector.slices), -1)


def scores_by_definition(
    path, spec, query: AttributionQuery, task_queries: Sequence[tuple[str, str]] = (), mixing: float = 0
) -> torch.Tensor:
    """Returns the score of every document by TrackStar's equations, from float64 rows that were never stored.

    With `task_queries`, their second moment is mixed into the preconditioner's with the share `mixing`.
    """
    model = load_model(spec.model, dtype="float64")
    collector = RowCollector(model, GradientProcessor.load(path / "statistics"))

    def rows_of(tokens):
        rows = torch.zeros(len(tokens), collector.dimensions, dtype=torch.float64)
        for batch in iter_batches(tokens, 10**6):
            rows[batch.indices], _ = collector.collect(batch)
        return rows.reshape(len(tokens), len(collector.slices), -1)

    documents = load_documents(spec)
    train = rows_of(tokenize_records(model.tokenizer, documents.read(range(len(documents)))))
    (query_row,) = rows_of(tokenize(model.tokenizer, [query.prompt], [query.completion]))
    phi, phi_query = train, query_row
    if spec.scoring.preconditioner or task_queries:
        second = torch.einsum("nmi,nmj->mij", train, train) / len(train)
        if task_queries:
            task = rows_of(tokenize(model.tokenizer, *map(list, zip(*task_queries, strict=True))))
            task_second = torch.einsum("nmi,nmj->mij", task, task) / len(task)
            second = mixing * task_second + (1 - mixing) * second
        mean = second.diagonal(dim1=1, dim2=2).mean(1)
        second += spec.scoring.damping * mean[:, None, None] * torch.eye(second.shape[1], dtype=second.dtype)
        values, vectors = torch.linalg.eigh(second)
        root = vectors @ torch.diag_embed(values.rsqrt()) @ vectors.mT
        phi, phi_query = (
            torch.einsum("mij,nmj->nmi", root, train),
            torch.einsum("mij,mj->mi", root, query_row),
        )
    if spec.gradients.rows == "sign":
        phi_query = phi_query / (phi_query.norm(dim=1, keepdim=True) * len(phi_query) ** 0.5)
        return phi.sign().flatten(1) @ phi_query.flatten() / phi[0].numel() ** 0.5
    if spec.scoring.normalize == "block":
        return torch.nn.functional.cosine_similarity(phi, phi_query, dim=2).mean(1)
    phi, phi_query = phi.flatten(1), phi_query.flatten()
    if spec.scoring.normalize == "row":
        phi, phi_query = phi / phi.norm(dim=1, keepdim=True), phi_query / phi_query.norm()
    return phi @ phi_query


def whole_scores_by_definition(
    rows: Sequence[torch.Tensor], query_rows: Sequence[torch.Tensor], normalize: str
) -> torch.Tensor:
    """Returns the part of each module in the scores of whole gradients, [n, m].

    Args:
        rows: The normalized gradients [n, o·i] of the documents, by module.
        query_rows: The normalized gradients [o·i] of the query, by module.
        normalize: What scores are divided by.
    """
    parts = torch.stack([row @ query_row for row, query_row in zip(rows, query_rows, strict=True)], 1)
    if normalize == "none":
        return parts
    if normalize == "row":
        length = torch.cat(list(rows), 1).norm(dim=1, keepdim=True) * torch.cat(list(query_rows)).norm()
        return parts / length
    lengths = [row.norm(dim=1) * query_row.norm() for row, query_row in zip(rows, query_rows, strict=True)]
    return parts / torch.stack(lengths, 1) / len(rows)


def random_documents(
    lengths: Sequence[int] = (9, 14, 5, 14, 7), first_label: int = 3, *, seed: int = 0, vocabulary: int = 320
) -> list[Tokens]:
    """Returns documents of random tokens. Their lengths differ, so that a batch is padded."""
    rng = np.random.default_rng(seed)
    return [Tokens.labelled_from(rng.integers(0, vocabulary, size=s), first_label) for s in lengths]


def damped_root(rows: torch.Tensor) -> torch.Tensor:
    """Returns (M + ε I)^-½ of M = E[row rowᵀ], computed by singular values."""
    moment = rows.T @ rows / len(rows)
    moment += KFAC_DAMPING * moment.trace() / len(moment) * torch.eye(len(moment), dtype=moment.dtype)
    u, values, v = torch.linalg.svd(moment)
    return u / values.sqrt() @ v


def result_ids(index: AttributionIndex, **changes: object) -> set[str]:
    """Returns the ids of all documents that a query finds, by default of up to forty in each direction."""
    (answer,) = index.attribute([query(**({"top_k": 40, "direction": "both"} | changes))])
    assert isinstance(answer, Answer)
    return {row.id for rows in (answer.results, answer.opponents) for row in rows or ()}


def document_ids(*without: int) -> set[str]:
    """Returns the ids of the forty documents, without those of these numbers."""
    return {f"doc-{k}" for k in range(40)} - {f"doc-{k}" for k in without}


def add_again_spec(number: int = 7) -> AppendSpec:
    """Returns an append of another document with the id of one of the forty."""
    return AppendSpec(
        documents=({"id": f"doc-{number}", "text": "Person 7 moved away", "source": "x", "number": number},)
    )
