"""Answers and scores go into tables, files and datasets with every field, and come out as they were."""

import csv
import json
import shutil
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from datasets import Dataset, load_dataset

from bergson_core import AttributionIndex, score_corpus, to_dataset, write_table
from bergson_core.errors import InvalidInput
from bergson_core.schemas.answer_parts.result_tables import spread_columns
from bergson_core.schemas.query import VerifySpec
from bergson_core.schemas.results import Answer, ResultRow
from tests.core.helpers import query

EVERYTHING = {
    "top_k": 3,
    "direction": "both",
    "include": ["text", "metadata", "tokens", "modules", "words"],
    "verify": VerifySpec(top=1, controls=1),
}
HOSTILE = {"prompt": '=HYPERLINK("x")\n"quoted", é\u202e', "completion": "-1", "id": "@id"}


@pytest.fixture(scope="module")
def index(index: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the index, since the words of its documents are written into its directory."""
    return shutil.copytree(index, tmp_path_factory.mktemp("words") / index.name)


@pytest.fixture(scope="module")
def opened(index: Path) -> AttributionIndex:
    return AttributionIndex.open(index)


@pytest.fixture(scope="module")
def answer(opened: AttributionIndex) -> Answer:
    """An answer in both directions with all parts of results, of which the first has hostile texts."""
    (answer,) = opened.attribute([query(**EVERYTHING)])
    first = answer.results[0].model_copy(
        update=HOSTILE | {"metadata": {"source": "+1", "number": None, "list": [1, "a"], "nan": float("nan")}}
    )
    return answer.model_copy(update={"results": [first, *answer.results[1:]]})


def rows_of(answer: Answer) -> list[dict]:
    """Returns the results as JSON has them, with their direction."""
    lists = {"proponents": answer.results, "opponents": answer.opponents}
    return [
        {"direction": name} | json.loads(row.model_dump_json())
        for name, rows in lists.items()
        for row in rows
    ]


def with_objects(rows: list[dict]) -> list[dict]:
    """Returns rows whose JSON texts are objects."""
    for row in rows:
        for name in ("metadata", "modules", "group"):
            row[name] = None if row[name] is None else json.loads(row[name], parse_constant=lambda _: None)
    return rows


def test_a_table_has_every_field_of_every_result(answer):
    table = answer.to_table()
    assert table.column_names == ["direction", *ResultRow.model_fields]
    assert with_objects(table.to_pylist()) == rows_of(answer)
    rest = json.loads(table.schema.metadata[b"bergson.answer"])
    assert rest == json.loads(answer.model_dump_json(exclude={"results", "opponents"}))


def test_the_columns_are_the_same_whatever_the_results_have(answer, opened):
    (plain,) = opened.attribute([query(include=[])])
    nothing = plain.model_copy(update={"results": []})
    assert plain.to_table().schema == nothing.to_table().schema == answer.to_table().schema
    assert (len(nothing.to_table()), len(plain.to_table())) == (0, 10)


def test_pandas_has_the_same_columns(answer):
    frame = answer.to_pandas()
    assert list(frame.columns) == answer.to_table().column_names
    assert frame["score"].tolist() == [row["score"] for row in rows_of(answer)]


def test_a_dataset_of_an_answer_is_saved_and_loaded_as_it_was(answer, tmp_path):
    dataset = to_dataset(answer)
    dataset.save_to_disk(tmp_path / "answer")
    assert with_objects(Dataset.load_from_disk(tmp_path / "answer").to_list()) == rows_of(answer)


def test_a_dataset_of_several_answers_tells_them_by_their_position(answer, opened):
    (other,) = opened.attribute([query(top_k=2)])
    dataset = to_dataset([answer, other])
    assert dataset["query"] == [0] * 6 + [1] * 2
    assert dataset.remove_columns("query").to_list() == [
        *answer.to_table().to_pylist(),
        *other.to_table().to_pylist(),
    ]


def test_an_error_among_the_answers_is_told_with_its_position(answer):
    with pytest.raises(InvalidInput, match="position 1 is an error: too bad"):
        to_dataset([answer, InvalidInput("too bad")])
    with pytest.raises(InvalidInput, match="got none"):
        to_dataset([])


def test_a_dataset_of_scores_has_a_row_for_each_document(opened):
    table = score_corpus(opened, [query()]).read_all()
    for scores in (table, score_corpus(opened, [query()])):
        assert to_dataset(scores).to_list() == table.to_pylist()


def test_groups_go_into_every_format(opened, tmp_path):
    (answer,) = opened.attribute([query(group_by="source", top_k=2)])
    for suffix in ("jsonl", "csv", "parquet"):
        write_table(answer.to_table(), tmp_path / f"answer.{suffix}")
    groups = [row.group.model_dump(mode="json") for row in answer.results]
    assert groups[0]["members"]
    lines = (tmp_path / "answer.jsonl").read_text("utf-8").splitlines()
    assert [json.loads(line)["group"] for line in lines] == groups
    cells = csv.DictReader((tmp_path / "answer.csv").open(encoding="utf-8", newline=""))
    assert [json.loads(row["group"]) for row in cells] == groups
    assert [json.loads(text) for text in to_dataset(answer)["group"]] == groups


def test_json_lines_have_every_result_as_the_service_has_it(answer, tmp_path):
    assert write_table(answer.to_table(), tmp_path / "answer.jsonl") == 6
    lines = (tmp_path / "answer.jsonl").read_text("utf-8").split("\n")
    assert [json.loads(line) for line in lines[:-1]] == rows_of(answer)


def test_parquet_has_every_result_with_its_types_and_the_rest_of_the_answer(answer, tmp_path):
    write_table(answer.to_table(), tmp_path / "answer.parquet")
    read = pq.read_table(tmp_path / "answer.parquet")
    assert read.to_pylist() == answer.to_table().to_pylist()
    assert (read.schema.names, read.schema.metadata) == (
        answer.to_table().column_names,
        answer.to_table().schema.metadata,
    )
    assert read.schema.field("words").type == answer.to_table().schema.field("words").type
    loaded = load_dataset(
        "parquet", data_files=str(tmp_path / "answer.parquet"), split="train", cache_dir=tmp_path
    )
    assert with_objects(loaded.to_list()) == rows_of(answer)


@pytest.mark.parametrize("escape_formulas", [False, True])
def test_csv_has_a_column_for_each_field_of_a_part_and_for_each_kind_of_metadata(
    answer, tmp_path, escape_formulas
):
    path = tmp_path / "answer.csv"
    write_table(spread_columns(answer.to_table()), path, escape_formulas=escape_formulas)
    rows = list(csv.DictReader(path.open(encoding="utf-8", newline="")))
    for row, expected in zip(rows, rows_of(answer), strict=True):
        assert float(row["words.score"]) == expected["words"]["score"]
        assert json.loads(row["words.states"]) == expected["words"]["states"]
        assert json.loads(row["tokens"]) == expected["tokens"]
        assert json.loads(row["modules"]) == expected["modules"]
        assert float(row["score"]) == expected["score"]
        assert row["verified.log_probability"] == "" or float(row["verified.log_probability"]) < 0.1
    mark = "'" if escape_formulas else ""
    assert {name: rows[0][name] for name in HOSTILE} == {name: mark + text for name, text in HOSTILE.items()}
    metadata = {name: text for name, text in rows[0].items() if name.startswith("metadata.")}
    assert metadata == {
        "metadata.source": f"{mark}+1",
        "metadata.number": "",
        "metadata.list": '[1, "a"]',
        "metadata.nan": "",
    }
    assert not {"chunk", "chunk.start", "exact", "metadata"} & rows[0].keys()
    assert float(rows[-1]["score"]) < 0, "numbers are no texts that begin with a minus"


def test_csv_without_spreading_has_metadata_as_json(answer, tmp_path):
    write_table(answer.to_table(), tmp_path / "answer.csv")
    (first, *_) = csv.DictReader((tmp_path / "answer.csv").open(encoding="utf-8", newline=""))
    assert json.loads(first["metadata"])["list"] == [1, "a"]
    assert first["chunk.start"] == ""


def test_nothing_is_lost_of_a_large_answer(answer, tmp_path):
    row = answer.results[1]
    many = [row.model_copy(update={"rank": rank, "prompt": "word " * 20_000}) for rank in range(1, 201)]
    table = answer.model_copy(update={"results": many, "opponents": None}).to_table()
    for suffix in ("jsonl", "csv", "parquet"):
        assert write_table(table, tmp_path / f"answer.{suffix}") == 200
    assert pq.read_table(tmp_path / "answer.parquet")["prompt"].to_pylist() == ["word " * 20_000] * 200
