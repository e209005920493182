"""Parquet files give documents whose values are those of the file, whatever type other columns have."""

from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from bergson_core.errors import ColumnNotFound, InvalidInput
from bergson_core.schemas.source import ColumnsSpec
from tests.core.helpers import read_records

META = ColumnsSpec(metadata=("m",))


def write(path, **columns):
    pq.write_table(pa.table(columns), path)
    return path


def metadata_of(path, column):
    texts = [f"text {number}" for number in range(len(column))]
    return [record.metadata["m"] for record in read_records(write(path, text=texts, m=column), META)]


@pytest.mark.parametrize(
    ("column", "values"),
    [
        (pa.array(["007", "NA", None, "2023-10-14"]), ["007", "NA", None, "2023-10-14"]),
        (pa.array([2**53 + 1, None], pa.int64()), [2**53 + 1, None]),
        (pa.array([2**64 - 1], pa.uint64()), [2**64 - 1]),
        (pa.array([0.5, float("nan"), None]), [0.5, None, None]),
        (pa.array([True, None]), [True, None]),
        (pa.array([datetime(2023, 10, 14)], pa.timestamp("us")), ["2023-10-14T00:00:00"]),
        (pa.array([datetime(2023, 10, 14, 1, 2, 3, 4)], pa.timestamp("us")), ["2023-10-14T01:02:03.000004"]),
        (
            pa.array([datetime(2023, 10, 14, tzinfo=UTC)], pa.timestamp("ms", "UTC")),
            ["2023-10-14T00:00:00+00:00"],
        ),
        (pa.array([1697241600000000001], pa.timestamp("ns")), ["2023-10-14T00:00:00.000000001"]),
        (pa.array([date(2023, 10, 14), None], pa.date32()), ["2023-10-14", None]),
        (pa.array([time(1, 2, 3)], pa.time64("us")), ["01:02:03"]),
        (pa.array([Decimal("1.50"), Decimal("-2.00")], pa.decimal128(10, 2)), [1.5, -2]),
        (pa.array([Decimal(10**30)], pa.decimal128(38, 0)), [10**30]),
        (pa.array(["a", "b", "a"]).dictionary_encode(), ["a", "b", "a"]),
        (pa.array(["a"], pa.large_string()), ["a"]),
        (pa.array([["a", None], []]), [["a", None], []]),
        (pa.array([{"a": date(2023, 10, 14), "b": [1]}, None]), [{"a": "2023-10-14", "b": [1]}, None]),
        (pa.array([{"a": 1}, {"b": [{"c": 1}, {"d": 2}]}]), [{"a": 1}, {"b": [{"c": 1}, {"d": 2}]}]),
        (pa.array([0.1, -1e20, float("nan"), None], pa.float32()), [0.1, -1e20, None, None]),
        (pa.array([3_723_000_001_000], pa.time64("ns")), ["01:02:03.000001"]),
        (pa.nulls(2), [None, None]),
    ],
    ids=lambda value: str(value.type) if isinstance(value, pa.Array) else "",
)
def test_metadata_is_the_value_of_the_file(tmp_path, column, values):
    read = metadata_of(tmp_path / "rows.parquet", column)
    assert (read, list(map(type, read))) == (values, list(map(type, values)))


@pytest.mark.parametrize(
    ("column", "message"),
    [
        (pa.array([b"a"]), "column 'm' holds binary; expected text"),
        (pa.array([[b"a"]]), "column 'm' holds list<.*binary>; expected text"),
        (pa.array([{"bytes": b"a"}]), "column 'm' holds struct<bytes: binary>; expected text"),
        (pa.array([1, 2]).cast(pa.duration("s")), "row 0 of column 'm' is timedelta; expected text"),
        (pa.array([0.5, float("inf")]), "row 1 of column 'm' is infinite"),
        (
            pa.array([Decimal("0.12345678901234567")], pa.decimal128(38, 17)),
            "row 0 of column 'm' is 0.1234.*digits",
        ),
        (
            pa.array([2**40], pa.int64()).cast(pa.timestamp("s")),
            "rows 0 to 0 of column 'm' .timestamp.* cannot be read",
        ),
    ],
    ids=str,
)
def test_a_value_that_json_does_not_have_is_an_error_that_names_the_column(tmp_path, column, message):
    with pytest.raises(InvalidInput, match=rf"rows\.parquet: {message}"):
        metadata_of(tmp_path / "rows.parquet", column)


@pytest.mark.parametrize(
    "column",
    [
        *(pa.array([b"\xff\xff"]), pa.array([timedelta(1)]), pa.array([2**45]).cast(pa.timestamp("s"))),
        *(pa.array([float("inf")]), pa.array([[{"a": b"x"}]]), pa.array([b"\xff"]).view(pa.string())),
    ],
    ids=lambda column: str(column.type),
)
def test_a_column_that_nobody_asked_for_may_be_of_any_type(tmp_path, column):
    records = read_records(write(tmp_path / "rows.parquet", text=["a"], m=column), ColumnsSpec())
    assert [record.prompt for record in records] == ["a"]


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"id": ["a", None], "text": ["a", "b"]}, "row 1 of column 'id' is null or missing"),
        (
            {"id": [0.5, 1.0], "text": ["a", "b"]},
            "row 0 of column 'id' is 0.5; expected an id that is text or an",
        ),
        ({"id": ["a", "b"], "text": ["a", None]}, "row 1 of column 'text' is null or missing"),
        ({"id": ["a", "b"], "text": [1, 2]}, "row 0 of column 'text' is int, expected text"),
        ({"id": ["a"], "text": [datetime(2023, 1, 1)]}, "row 0 of column 'text' is datetime, expected text"),
        (
            {"id": ["a"], "text": pa.array([b"\xff"]).view(pa.string())},
            "rows 0 to 0 of column 'text' .*cannot be read",
        ),
    ],
)
def test_a_wrong_value_is_an_error_that_names_file_row_and_column(tmp_path, columns, message):
    with pytest.raises(InvalidInput, match=rf"rows\.parquet: {message}"):
        read_records(write(tmp_path / "rows.parquet", **columns), ColumnsSpec(id="id"))


def test_integers_and_decimals_are_ids_and_weights(tmp_path):
    weights = pa.array([Decimal("0.5"), Decimal("2.0")], pa.decimal128(4, 1))
    path = write(
        tmp_path / "rows.parquet", id=pa.array([7, 2**64 - 1], pa.uint64()), text=["a", "b"], w=weights
    )
    records = read_records(path, ColumnsSpec(id="id", weight="w"))
    assert [(record.id, record.weight) for record in records] == [("7", 0.5), (str(2**64 - 1), 2.0)]


def test_a_column_whose_name_has_a_dot_is_read(tmp_path):
    path = write(tmp_path / "rows.parquet", **{"text": ["a"], "m.a": ["x"], "m": [{"a": "y"}]})
    assert read_records(path, ColumnsSpec(metadata=("m.a", "m")))[0].metadata == {"m.a": "x", "m": {"a": "y"}}


def test_columns_may_differ_in_type_between_files(tmp_path):
    write(tmp_path / "1.parquet", text=["a"], m=pa.nulls(1))
    write(tmp_path / "2.parquet", text=pa.array(["b"], pa.large_string()), m=pa.array([2], pa.int8()))
    write(tmp_path / "3.parquet", text=["c"], m=[0.5])
    assert [record.metadata["m"] for record in read_records(tmp_path, META)] == [None, 2, 0.5]
    write(tmp_path / "4.parquet", text=["d"], m=["x"])
    with pytest.raises(
        InvalidInput, match=r"4\.parquet: row 0 of column 'm' is text .*2\.parquet: row 0.* a number"
    ):
        read_records(tmp_path, META)


@pytest.mark.parametrize("content", [b"", b"PAR1", b"not a parquet file at all"])
def test_a_damaged_file_is_an_error(tmp_path, content):
    (tmp_path / "rows.parquet").write_bytes(content)
    with pytest.raises(InvalidInput, match=r"rows\.parquet cannot be read"):
        read_records(tmp_path / "rows.parquet", ColumnsSpec())


def test_a_file_without_rows_is_empty(tmp_path):
    write(tmp_path / "rows.parquet", text=pa.array([], pa.string()))
    with pytest.raises(InvalidInput, match=r"rows\.parquet is empty"):
        read_records(tmp_path / "rows.parquet", ColumnsSpec())


def test_a_missing_or_repeated_column_is_named(tmp_path):
    pq.write_table(pa.table([pa.array(["a"])] * 3, ["text", "text", "m"]), tmp_path / "rows.parquet")
    with pytest.raises(InvalidInput, match="it has the column 'text' 2 times"):
        read_records(tmp_path / "rows.parquet", ColumnsSpec())
    with pytest.raises(ColumnNotFound, match="has no column 'body'; it has text, m"):
        read_records(tmp_path / "rows.parquet", ColumnsSpec(prompt="body"))


@pytest.mark.parametrize(
    "column",
    [pa.array([3_723_000_000_001], pa.time64("ns")), pa.array([1], pa.timestamp("us", "Mars/Base"))],
    ids=["nanoseconds", "an unknown zone"],
)
def test_a_time_that_cannot_be_kept_names_its_column(tmp_path, column):
    with pytest.raises(InvalidInput, match=r"rows 0 to 0 of column 'm' .* cannot be read"):
        metadata_of(tmp_path / "rows.parquet", column)
