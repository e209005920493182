"""`bergson score` writes tables or arrays, by the suffix of its output, and takes prompts or chats."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from typer.testing import CliRunner

from bergson_core.attribution import corpus_scores
from bergson_core.attribution.index import AttributionIndex
from bergson_core.errors import InvalidInput
from bergson_core.schemas.documents import DocumentReport
from bergson_core.schemas.source import ColumnsSpec
from service.cli import app

SCORES = np.array([[0.5, -1.5, 0.1], [2.0, 0.25, -3.0]], dtype=np.float32)
"""Scores of three documents with two queries."""


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[ColumnsSpec]:
    """Returns the columns that queries are read from. The index has three documents with the scores SCORES."""
    ids, columns_asked = pa.array(["a", "b", "c"]), []
    manifest = SimpleNamespace(rows=3, numbered=3, documents=DocumentReport())
    shards = [SimpleNamespace(documents=pa.table({"id": ids}))]
    index = SimpleNamespace(name="facts", manifest=manifest, shards=shards, visible=lambda: [None])

    def score_corpus(_index: Any, _queries: Any, columns: ColumnsSpec, *, aggregate: str, **_: Any) -> Any:
        columns_asked.append(columns)
        if aggregate == "each":
            lists = pa.FixedSizeListArray.from_arrays(pa.array(SCORES.T.ravel()), 2)
            return pa.table({"id": ids, "scores": lists}).to_reader()
        return pa.table({"id": ids, "score": SCORES.mean(0)}).to_reader()

    monkeypatch.setattr(AttributionIndex, "open", lambda path: index)
    monkeypatch.setattr(corpus_scores, "score_corpus", score_corpus)
    return columns_asked


@pytest.fixture
def queries(tmp_path: Path) -> Path:
    path = tmp_path / "queries.jsonl"
    chat = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]
    path.write_text(json.dumps({"prompt": "Hi", "completion": "Hello", "messages": chat}) + "\n")
    return path


def run(queries: Path, output: str, *options: str) -> Any:
    arguments = [
        "score",
        "facts",
        "--queries",
        str(queries),
        "--output",
        str(queries.parent / output),
        *options,
    ]
    return CliRunner().invoke(app, arguments)


def test_json_is_a_list_of_numbers_in_the_order_of_the_corpus(
    asked: list[ColumnsSpec], queries: Path
) -> None:
    result = run(queries, "scores.json")
    assert result.exit_code == 0, result.output
    assert json.loads((queries.parent / "scores.json").read_text()) == SCORES.mean(0).tolist()
    assert "3 of 3 documents" in " ".join(result.output.split())


@pytest.mark.parametrize("name", ["scores.json", "scores.npy"])
def test_each_is_a_list_for_each_query(asked: list[ColumnsSpec], queries: Path, name: str) -> None:
    assert run(queries, name, "--aggregate", "each").exit_code == 0
    path = queries.parent / name
    read = np.load(path) if path.suffix == ".npy" else np.array(json.loads(path.read_text()))
    np.testing.assert_array_equal(read, SCORES)


@pytest.mark.parametrize("name", ["scores.json", "scores.npy"])
def test_the_best_documents_are_not_written_without_ids(
    asked: list[ColumnsSpec], queries: Path, name: str
) -> None:
    result = run(queries, name, "--top_k", "2")
    assert isinstance(result.exception, InvalidInput)
    assert "no ids to name the best 2" in str(result.exception)
    assert not asked
    assert not (queries.parent / name).exists()


def test_an_unknown_suffix_is_told_all_that_are_known(asked: list[ColumnsSpec], queries: Path) -> None:
    result = run(queries, "scores.pt")
    assert isinstance(result.exception, InvalidInput)
    assert "expected .jsonl, .csv, .parquet, .json, .npy" in str(result.exception)
    assert not asked


def test_queries_are_prompts_or_chats(asked: list[ColumnsSpec], queries: Path) -> None:
    assert run(queries, "prompts.json").exit_code == 0
    assert run(queries, "chats.json", "--messages_column", "messages").exit_code == 0
    assert asked == [ColumnsSpec(prompt="prompt", completion="completion"), ColumnsSpec(messages="messages")]


@pytest.mark.parametrize("option", ["--prompt_column", "--completion_column"])
def test_chats_have_no_columns_of_prompts(asked: list[ColumnsSpec], queries: Path, option: str) -> None:
    result = run(queries, "scores.json", "--messages_column", "messages", option, "text")
    assert isinstance(result.exception, InvalidInput)
    assert "not both" in str(result.exception)
