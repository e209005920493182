"""A metadata column keeps its type over appends, and the types are known of old indexes and damaged shards too."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from bergson_core import AttributionIndex, append_documents, build_index, compact_index, take_down_document
from bergson_core.errors import InvalidInput
from bergson_core.schemas.build import AppendSpec
from bergson_core.schemas.source import ColumnsSpec, DatasetSpec
from bergson_core.storage.manifest import read_manifest
from bergson_core.storage.metadata_types import column_types, merge_types, recorded_types
from tests.core.helpers import make_spec, query, write_rows

COLUMNS = ("text_", "whole", "real", "flag", "tags", "object", "empty")
ROWS = [
    {
        "text_": "wiki",
        "whole": 1,
        "real": 0.5,
        "flag": True,
        "tags": ["a"],
        "object": {"a": 1},
        "empty": None,
    },
    {"text_": None, "whole": None, "real": None, "flag": None, "tags": [], "object": None, "empty": None},
    {"text_": "web", "whole": 3, "real": 2.0, "flag": False, "tags": None, "object": {"a": 2}, "empty": None},
]
TYPES = {
    "text_": "text",
    "whole": "integer",
    "real": "number",
    "flag": "boolean",
    "tags": "list of text",
    "object": "object",
    "empty": "null",
}


def documents_of(rows: list[dict[str, Any]], prefix: str) -> list[dict[str, Any]]:
    return [{"id": f"{prefix}-{k}", "text": "Person 3 lives in city 1."} | row for k, row in enumerate(rows)]


@pytest.fixture(scope="module")
def built(sources, tmp_path_factory) -> Path:
    """An index of two shards whose metadata is `ROWS`."""
    directory = tmp_path_factory.mktemp("types")
    dataset = write_rows(directory, *documents_of(ROWS, "doc"))
    columns = ColumnsSpec(id="id", metadata=COLUMNS)
    build_index(make_spec(sources, dataset=dataset, columns=columns), directory / "facts", shard_rows=2)
    return directory / "facts"


@pytest.fixture
def facts(built, tmp_path) -> Path:
    """A copy of the index that may be changed."""
    return shutil.copytree(built, tmp_path / "facts")


def forget_types(index: Path) -> None:
    """Makes the manifest one of a release that did not record the types of columns."""
    manifest = json.loads((index / "manifest.json").read_text())
    for shard in manifest["shards"]:
        del shard["metadata_types"]
    (index / "manifest.json").write_text(json.dumps(manifest))


def append(index: Path, *rows: dict[str, Any], prefix: str = "new") -> None:
    documents = documents_of([dict.fromkeys(COLUMNS) | row for row in rows], prefix)
    append_documents(index, AppendSpec(documents=tuple(documents)))


def ids_that_meet(index: Path, **conditions: Any) -> set[str]:
    (answer,) = AttributionIndex.open(index).attribute([query(top_k=100, filter=conditions)])
    assert not isinstance(answer, Exception), answer
    return {row.id for row in answer.results}


def test_a_build_records_the_types_of_its_columns(built):
    assert recorded_types(read_manifest(built)) == TYPES


@pytest.mark.parametrize("recorded", [True, False], ids=["recorded types", "an old index"])
@pytest.mark.parametrize(
    ("column", "value", "message"),
    [
        ("text_", 7, "holds text, and the document 'new-1' has integers: 7"),
        ("text_", True, "holds text, and the document 'new-1' has booleans: True"),
        ("text_", ["a"], "has lists of text"),
        ("whole", "7", "holds integers, and the document 'new-1' has text: '7'"),
        ("whole", True, "has booleans"),
        ("real", "0.5", "holds numbers, and the document 'new-1' has text"),
        ("flag", 1, "holds booleans, and the document 'new-1' has integers"),
        ("flag", "true", "holds booleans, and the document 'new-1' has text"),
        ("tags", "a", "holds lists of text, and the document 'new-1' has text: 'a'"),
        ("tags", [1], "has lists of integers"),
        ("object", "a", "holds objects, and the document 'new-1' has text"),
    ],
)
def test_an_append_of_another_type_is_refused_by_the_name_of_the_column(
    facts, column, value, message, recorded
):
    if not recorded:
        forget_types(facts)
    with pytest.raises(InvalidInput) as raised:
        append(facts, {}, {column: value})
    assert f"metadata column {column!r} of the index facts" in str(raised.value)
    assert message in str(raised.value)
    assert read_manifest(facts).generation == 1


def test_integers_may_become_numbers_and_null_is_of_every_type(facts):
    append(facts, {"whole": 2.5, "real": 7, "empty": "now text"}, {})
    assert recorded_types(read_manifest(facts)) == TYPES | {"whole": "number", "empty": "text"}
    assert ids_that_meet(facts, whole={"gt": 1, "lt": 3}) == {"new-0"}
    assert ids_that_meet(facts, whole=3) == {"doc-2"}
    with pytest.raises(InvalidInput, match="'empty' of the index facts holds text"):
        append(facts, {"empty": 1}, prefix="later")
    append(facts, {"whole": 9, "empty": "more"}, prefix="later")
    assert ids_that_meet(facts, empty={"exists": True}) == {"new-0", "later-0"}


def test_an_appended_file_of_another_type_is_refused(facts, tmp_path):
    rows = documents_of([dict.fromkeys(COLUMNS) | {"whole": "1990"}], "file")
    path = tmp_path / "more.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(InvalidInput, match="'whole' of the index facts holds integers"):
        append_documents(facts, AppendSpec(dataset=DatasetSpec(path=str(path))))


@pytest.mark.parametrize("recorded", [True, False], ids=["recorded types", "an old index"])
def test_filters_cover_appended_documents_takedowns_and_compaction(facts, recorded):
    if not recorded:
        forget_types(facts)
    append(facts, {"text_": "wiki", "tags": ["b", "a"]}, {"text_": "books"})
    assert ids_that_meet(facts, text_="wiki") == {"doc-0", "new-0"}
    assert ids_that_meet(facts, text_={"ne": "wiki"}) == {"doc-1", "doc-2", "new-1"}
    assert ids_that_meet(facts, text_={"ne": "wiki", "exists": True}) == {"doc-2", "new-1"}
    assert ids_that_meet(facts, tags="a", text_={"not_in": ["web"]}) == {"doc-0", "new-0"}
    take_down_document(facts, "doc-0")
    assert ids_that_meet(facts, text_="wiki") == {"new-0"}
    compact_index(facts)
    assert ids_that_meet(facts, text_="wiki") == {"new-0"}
    (refused,) = AttributionIndex.open(facts).attribute([query(filter={"text_": 3})])
    assert isinstance(refused, InvalidInput) and "'text_' holds text" in str(refused)


def test_a_damaged_shard_leaves_the_types_known(facts):
    (facts / "shards" / "00000" / "rows.arrow").write_bytes(b"damaged")
    index = AttributionIndex.open(facts, partial=True)
    answer, refused = index.attribute(
        [
            query(partial=True, filter={"text_": {"ne": "wiki"}}),
            query(partial=True, filter={"flag": "true"}),
        ]
    )
    assert [row.id for row in answer.results] == ["doc-2"]
    assert isinstance(refused, InvalidInput) and "'flag' holds booleans" in str(refused)


@pytest.mark.parametrize(
    ("types", "expected"),
    [
        ([], "null"),
        (["null", "text"], "text"),
        (["text", "null", "text"], "text"),
        (["integer", "number"], "number"),
        (["number", "integer"], "number"),
        (["integer", "text"], "mixed"),
        (["boolean", "integer"], "mixed"),
        (["mixed", "null", "text"], "mixed"),
        (["list of null", "list of text"], "list of text"),
        (["list of integer", "list of number"], "list of number"),
        (["list of text", "list of integer"], "list of mixed"),
        (["list of text", "text"], "mixed"),
        (["list of list of null", "list of list of text"], "list of list of text"),
    ],
)
def test_the_type_of_parts_together(types, expected):
    assert merge_types(types) == expected


def test_nan_has_no_type_and_lists_have_that_of_their_items():
    metadata = [{"a": float("nan"), "b": [[]]}, {"a": None, "b": [["x"]]}]
    assert column_types(metadata) == {"a": "null", "b": "list of list of text"}
