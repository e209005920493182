"""`bergson behaviours` keeps sets of queries with an index on disk, which `query` and `score` then ask for by name."""

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from bergson_core import build_index
from bergson_core.errors import BehaviourExists, BehaviourNotFound, IndexNotFound, InvalidInput
from service.cli import app
from tests import tiny
from tests.core.helpers import make_spec, write_lines

QUERIES = [{"prompt": f"Person {k} lives in", "completion": f" city {k % 3}."} for k in range(3)]
CONTROL = [{"prompt": "Person 1 works", "completion": " for company 1."}]


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("cli")
    tiny.save_model(root / "model")
    tiny.save_documents(root / "documents.jsonl")
    build_index(make_spec(root), root / "facts")
    return root / "facts"


@pytest.fixture
def files(tmp_path: Path) -> tuple[str, str]:
    paths = (("queries.jsonl", QUERIES), ("control.jsonl", CONTROL))
    queries, control = (str(write_lines(tmp_path / name, *rows)) for name, rows in paths)
    return queries, control


def run(*arguments: object) -> Any:
    return CliRunner().invoke(app, list(map(str, arguments)))


def test_a_behaviour_is_created_listed_shown_asked_for_scored_and_deleted(
    index: Path, files: tuple[str, str], tmp_path: Path
) -> None:
    queries, control = files
    assert "has no behaviours" in run("behaviours", "list", index).stdout
    made = run("behaviours", "create", index, "living", "--queries", queries, "--control", control)
    assert made.exit_code == 0, made.output
    assert "of 3 queries, less 1 of the control set" in made.stdout
    assert isinstance(
        run("behaviours", "create", index, "living", "--queries", queries).exception, BehaviourExists
    )
    run("behaviours", "create", index, "alone", "--queries", queries)
    listed = json.loads(run("behaviours", "list", index, "--json").stdout)["items"]
    assert [each["name"] for each in listed] == ["alone", "living"]
    assert "living" in run("behaviours", "list", index).stdout
    shown = json.loads(run("behaviours", "show", index, "living").stdout)
    assert (shown["queries"], shown["control"]) == (QUERIES, CONTROL)

    answer = run("query", index, "--behaviour", "living", "--top_k", 40, "--json")
    answered = {row["id"]: row["score"] for row in json.loads(answer.stdout)["results"]}
    table = run("query", index, "--behaviour", "living", "--instead_of_behaviour", "alone").stdout
    assert "behaviour living" in table and "alone" in table
    output = tmp_path / "scores.jsonl"
    scored = run("score", index, "--behaviour", "living", "--output", output, "--by", "source")
    assert scored.exit_code == 0, scored.output
    rows = [json.loads(line) for line in output.read_text().splitlines()]
    assert len(rows) == 40
    plain = run("score", index, "--behaviour", "living", "--output", tmp_path / "plain.jsonl")
    assert plain.exit_code == 0, plain.output
    lines = (tmp_path / "plain.jsonl").read_text().splitlines()
    assert {row["id"]: row["score"] for row in map(json.loads, lines)} == pytest.approx(answered, abs=1e-5)

    for name in ("living", "alone"):
        assert "is deleted" in run("behaviours", "delete", index, name).stdout
    assert isinstance(run("behaviours", "delete", index, "living").exception, BehaviourNotFound)
    assert isinstance(run("query", index, "--behaviour", "living").exception, BehaviourNotFound)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"prompt": "a", "completion": " b"}\n\n{"prompt": ', "line 3 of .* is not JSON"),
        ("", "--queries: .* has no queries"),
        ('{"prompt": "a", "completion": " b"}\n\n{"prompt": "a"}', "^line 3 of .*bad.jsonl: completion: "),
        ('\n{"prompt": "", "completion": "P"}', "^line 2 of .*bad.jsonl: nothing to attribute"),
        ('["a"]', "--queries: line 1 of .* is list; expected an object"),
    ],
)
def test_a_file_that_holds_no_queries_is_refused(
    index: Path, tmp_path: Path, content: str, message: str
) -> None:
    path = tmp_path / "bad.jsonl"
    path.write_text(content)
    result = run("behaviours", "create", index, "bad", "--queries", path)
    assert isinstance(result.exception, InvalidInput)
    assert pytest.raises(InvalidInput, match=message).matches(result.exception)


def test_what_is_missing_is_told(index: Path, files: tuple[str, str], tmp_path: Path) -> None:
    missing = run("behaviours", "create", index, "x", "--queries", tmp_path / "no.jsonl")
    assert "cannot be read (No such file" in str(missing.exception)
    for command in (
        ("create", tmp_path, "x", "--queries", files[0]),
        ("list", tmp_path),
        ("show", tmp_path, "x"),
    ):
        assert isinstance(run("behaviours", *command).exception, IndexNotFound)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ((), "either --queries or --behaviour, got neither"),
        (("--queries", "q.jsonl", "--behaviour", "a"), "either --queries or --behaviour, got both"),
        (("--queries", "q.jsonl", "--instead_of_behaviour", "a"), "expected also --behaviour"),
        (("--behaviour", "a", "--aggregate", "each"), "expected no --aggregate"),
    ],
)
def test_documents_are_scored_either_with_queries_or_with_a_behaviour(
    tmp_path: Path, options: tuple[str, ...], message: str
) -> None:
    result = run("score", "facts", "--output", tmp_path / "scores.jsonl", *options)
    assert isinstance(result.exception, InvalidInput)
    assert message in str(result.exception)
