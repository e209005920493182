"""Documents of a dataset in memory and of a request are checked like those of a file."""

from datetime import datetime

import pyarrow as pa
import pytest
from datasets import Dataset, Features, Json, Value
from datasets.table import InMemoryTable

from bergson_core.data.documents import documents_from_dataset, load_documents
from bergson_core.errors import ColumnNotFound, InvalidInput
from bergson_core.schemas.build import BuildSpec
from bergson_core.schemas.record import Record
from bergson_core.schemas.source import ColumnsSpec

META = ColumnsSpec(metadata=("m",))


def read_inline(columns: ColumnsSpec, *rows: dict) -> list[Record]:
    documents = load_documents(BuildSpec(model="any", documents=rows, columns=columns))
    return documents.read(range(len(documents)))


def read_dataset(columns: ColumnsSpec, dataset: Dataset) -> list[Record]:
    return documents_from_dataset(dataset, columns, "rows").read(range(len(dataset)))


def test_documents_of_a_request_keep_their_values():
    rows = [{"text": "2023-10-14", "m": value} for value in ({"a": [1, "x"]}, {"b": None}, None)]
    records = read_inline(META, *rows, {"text": "b"})
    assert [record.metadata["m"] for record in records] == [{"a": [1, "x"]}, {"b": None}, None, None]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (
            {"text": "b", "id": "b", "m": "unknown"},
            "'m' is text .'unknown'., but documents: row 0.* is a number",
        ),
        ({"text": "b", "id": "b", "m": [1]}, "'m' is a list .*is a number"),
        ({"text": "b", "id": None, "m": 1}, "'id' is null or missing"),
        ({"text": "b", "m": 1}, "'id' is null or missing"),
        ({"text": ["b"], "id": "b", "m": 1}, "'text' is list, expected text"),
        ({"id": "b", "m": 1}, "'text' is null or missing"),
        ({"text": "\ud800", "id": "b"}, "'text' holds half of a surrogate pair"),
    ],
)
def test_a_wrong_value_in_a_request_is_an_error_that_names_row_and_column(row, message):
    with pytest.raises(InvalidInput, match=f"documents: row 1 of column {message}"):
        read_inline(ColumnsSpec(id="id", metadata=("m",)), {"text": "a", "id": "a", "m": 1990}, row)


def test_a_column_that_no_document_of_a_request_has_is_named():
    with pytest.raises(ColumnNotFound, match="documents has no column 'body'; it has text, url"):
        read_inline(ColumnsSpec(prompt="body"), {"text": "a"}, {"url": "b"})


def test_columns_of_a_request_that_nobody_asked_for_may_be_of_any_type():
    rows = ({"text": "a", "x": 1}, {"text": "b", "x": "y"}, {"text": "c", "x": float("inf")})
    assert [record.prompt for record in read_inline(ColumnsSpec(), *rows)] == ["a", "b", "c"]


def test_a_dataset_with_a_column_of_several_types_is_refused_by_row():
    features = Features({"text": Value("string"), "m": Json()})
    rows = [{"text": "a", "m": None}] + [{"text": "a", "m": 1990}] * 1500
    dataset = Dataset.from_list([*rows, {"text": "a", "m": "unknown"}], features=features)
    with pytest.raises(
        InvalidInput, match=r"rows: row 1501 of column 'm' is text .*rows: row 1 of .* is a number"
    ):
        read_dataset(META, dataset)
    assert len(read_dataset(META, dataset.select(range(1501)))) == 1501
    assert len(read_dataset(ColumnsSpec(), dataset)) == 1502


def test_dates_of_a_dataset_become_text():
    dataset = Dataset.from_dict({"text": ["a", "b"], "m": [datetime(2023, 10, 14), None]})
    assert [record.metadata["m"] for record in read_dataset(META, dataset)] == ["2023-10-14T00:00:00", None]


def test_ids_of_a_dataset_have_to_be_there():
    dataset = Dataset.from_dict({"text": ["a", "b"], "id": ["a", None]})
    with pytest.raises(InvalidInput, match="rows: row 1 of column 'id' is null or missing"):
        read_dataset(ColumnsSpec(id="id"), dataset)


def test_bytes_of_a_dataset_are_no_metadata():
    dataset = Dataset(InMemoryTable(pa.table({"text": ["a"], "m": [b"a"]})))
    with pytest.raises(InvalidInput, match="rows: row 0 of column 'm' is bytes; expected text"):
        read_dataset(META, dataset)
