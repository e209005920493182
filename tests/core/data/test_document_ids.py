"""What an id may be is the same for files, datasets and inline documents: what a URL can name."""

import json
from pathlib import Path

import pytest
from datasets import Dataset

from bergson_core.data.documents import documents_from_dataset, load_documents
from bergson_core.errors import InvalidInput
from bergson_core.schemas.build import BuildSpec
from bergson_core.schemas.documents import MAX_ID_CHARACTERS, chunk_id, find_id_problem
from bergson_core.schemas.source import ColumnsSpec

GOOD = [
    "a",
    " a ",
    "a/b",
    "/",
    "...",
    "%0A",
    "?#&;",
    "é",
    "e\u0301",
    "\u202e",
    "\ufeff",
    "😀" * 4096,
    "x" * 4096,
    "#1",
]
BAD = {
    "": "is empty",
    ".": "leads to another path",
    "..": "leads to another path",
    "a\n": r"control character or line break \(U\+000A\) at position 1",
    "\ra": r"U\+000D",
    "a\x00": r"U\+0000",
    "a\x7f": r"U\+007F",
    "a\x85": r"U\+0085",
    "a\u2028b": r"U\+2028",
    "\t": r"U\+0009",
    "x" * 4097: "has 4,097 characters, and an id at most 4,096",
}


@pytest.mark.parametrize("document_id", GOOD)
def test_an_id_may_hold_whatever_a_url_can_name(document_id: str):
    assert find_id_problem(document_id) is None


def test_half_of_a_surrogate_pair_is_no_character_of_an_id():
    assert "half of a surrogate pair (U+D800)" in str(find_id_problem("a\ud800"))


def inline(ids: list[object]) -> None:
    documents = tuple({"id": value, "text": "a"} for value in ids)
    load_documents(BuildSpec(model="m", documents=documents, columns=ColumnsSpec(id="id")))


def from_file(ids: list[object], path: Path) -> None:
    path.write_text("".join(json.dumps({"id": value, "text": "a"}) + "\n" for value in ids))
    dataset = {"path": str(path)}
    load_documents(BuildSpec.model_validate({"model": "m", "dataset": dataset, "columns": {"id": "id"}}))


def from_dataset(ids: list[object]) -> None:
    dataset = Dataset.from_list([{"id": value, "text": "a"} for value in ids])
    documents_from_dataset(dataset, ColumnsSpec(id="id")).read(range(len(ids)))


@pytest.mark.parametrize(("document_id", "message"), BAD.items())
def test_an_id_that_no_url_can_name_is_refused_with_its_row(tmp_path: Path, document_id: str, message: str):
    for read in (inline, lambda ids: from_file(ids, tmp_path / "rows.jsonl"), from_dataset):
        with pytest.raises(InvalidInput, match=rf"row 1 of column 'id' .*{message}|documents\.1.*{message}"):
            read(["first", document_id])


def test_integers_are_ids_up_to_the_same_length():
    inline([0, -1, 10 ** (MAX_ID_CHARACTERS - 1)])
    with pytest.raises(InvalidInput, match="has 4,097 characters"):
        inline([10**MAX_ID_CHARACTERS])


def test_a_bad_id_of_a_dataset_is_named_by_its_row():
    dataset = Dataset.from_list([{"id": value, "text": "a"} for value in ("first", "a\n", "third")])
    documents = documents_from_dataset(dataset, ColumnsSpec(id="id"))
    assert documents.read_ids(range(3)) == ["first", "row 1", "third"]


def test_the_id_of_a_chunk_is_that_of_its_document_with_a_number():
    assert chunk_id("a", 0) == "a"
    assert chunk_id("a", 12) == "a#12"
