"""CSV files give texts as they are written; metadata are numbers only where no digit is lost by that."""

import csv

import pytest

from bergson_core.data import row_chunks
from bergson_core.data.dataset import load_dataset_spec
from bergson_core.errors import ColumnNotFound, InvalidInput
from bergson_core.schemas.source import ColumnsSpec, DatasetSpec
from tests.core.helpers import read_records

WORDS = [
    "007",
    "0008",
    "NA",
    "None",
    "null",
    "nan",
    "NaN",
    "",
    "N/A",
    "true",
    "2023-10-14",
    "1.50",
    "1e5",
    " 1",
    "-0",
]


def write_csv(path, *rows, delimiter=","):
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file, delimiter=delimiter).writerows(rows)
    return path


@pytest.mark.parametrize(
    "word", [*WORDS, "a,b", 'say "hi"', "two\nlines", "two\r\nlines", "tab\there", "é😀"]
)
@pytest.mark.parametrize(("suffix", "delimiter"), [("csv", ","), ("tsv", "\t")])
def test_a_cell_is_the_text_that_stands_in_the_file(tmp_path, word, suffix, delimiter):
    rows = [("text", "answer", "m"), (word, word, word), ("x", "y", "z")]
    path = write_csv(tmp_path / f"rows.{suffix}", *rows, delimiter=delimiter)
    record, _ = read_records(path, ColumnsSpec(completion="answer", metadata=("m",)))
    assert (record.prompt, record.completion, record.metadata) == (word, word, {"m": word})


@pytest.mark.parametrize("word", ["7", "1.5", "007", "NA", "1e5", "2023-10-14", "9" * 30])
def test_ids_and_texts_that_look_like_numbers_are_texts(tmp_path, word):
    path = write_csv(tmp_path / "rows.csv", ("id", "text", "answer"), (word, word, word))
    (record,) = read_records(path, ColumnsSpec(id="id", completion="answer"))
    assert (record.id, record.prompt, record.completion) == (word, word, word)


@pytest.mark.parametrize(
    ("cells", "values"),
    [
        (["1990", "-3", "0"], [1990, -3, 0]),
        (["0.5", "1", "-2.25"], [0.5, 1, -2.25]),
        (["1990", "", "2000"], [1990, None, 2000]),
        (["9007199254740993", "18446744073709551617"], [2**53 + 1, 2**64 + 1]),
        (["1e-07", "1e+16", "0.1"], [1e-7, 1e16, 0.1]),
        (["007", "8", "9"], ["007", "8", "9"]),
        (["1", "2", "unknown"], ["1", "2", "unknown"]),
        (["1", "", "unknown"], ["1", "", "unknown"]),
        (["1.50", "2.25"], ["1.50", "2.25"]),
        (["1e400", "1"], ["1e400", "1"]),
        (["nan", "inf"], ["nan", "inf"]),
        (["٣", "1"], ["٣", "1"]),
        (["1_000", "1"], ["1_000", "1"]),
        (["+1", "1"], ["+1", "1"]),
        (["0.1234567890123456789", "1"], ["0.1234567890123456789", "1"]),
        (["9" * 5000, "1"], ["9" * 5000, "1"]),
        (["", ""], ["", ""]),
        (["true", "false"], ["true", "false"]),
    ],
)
def test_metadata_are_numbers_where_every_cell_is_one_in_its_shortest_form(
    tmp_path, monkeypatch, cells, values
):
    monkeypatch.setattr(row_chunks, "CHUNK_ROWS", 2)
    path = write_csv(tmp_path / "rows.csv", ("text", "m"), *(("a", cell) for cell in cells))
    read = [record.metadata["m"] for record in read_records(path, ColumnsSpec(metadata=("m",)))]
    assert (read, list(map(type, read))) == (values, list(map(type, values)))


def test_a_column_has_one_type_in_all_files(tmp_path):
    for number, cell in enumerate(("1", "unknown")):
        write_csv(tmp_path / f"{number}.csv", ("text", "m"), ("a", cell))
    records = read_records(tmp_path, ColumnsSpec(metadata=("m",)))
    assert [record.metadata["m"] for record in records] == ["1", "unknown"]


@pytest.mark.parametrize("cell", ["1", " 2 ", "0.50", "1e-3", "007", "+2", ".5", "5."])
def test_weights_are_numbers_however_they_are_written(tmp_path, cell):
    path = write_csv(tmp_path / "rows.csv", ("text", "w"), ("a", cell))
    assert read_records(path, ColumnsSpec(weight="w"))[0].weight == float(cell)


@pytest.mark.parametrize("cell", ["", "NA", "nan", "inf", "1e400", "one", "1,5", "1_0"])
def test_a_weight_that_is_no_number_is_an_error_that_names_the_row(tmp_path, cell):
    path = write_csv(tmp_path / "rows.csv", ("text", "w"), ("a", "1"), ("b", cell))
    with pytest.raises(InvalidInput, match=r"rows\.csv: row 1 of column 'w' is .*expected a finite number"):
        read_records(path, ColumnsSpec(weight="w"))


def test_an_empty_id_is_an_error_that_names_the_row(tmp_path):
    path = write_csv(tmp_path / "rows.csv", ("id", "text"), ("1", "a"), ("", "b"))
    with pytest.raises(InvalidInput, match=r"rows\.csv: row 1 of column 'id' is empty"):
        read_records(path, ColumnsSpec(id="id"))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"text,m\na,1\nb\n", "line 3 has 1 fields; expected 2, as the header has"),
        (b"text,m\na,1\n\nb,2,3\n", "line 4 has 3 fields; expected 2"),
        (b'text,m\n"two\nlines",1\nb\n', "line 4 has 1 fields; expected 2"),
        (b"text,m,text\na,1,b\n", "its header has the column 'text' 2 times"),
        (b'text,m\n"a"b,1\n', "line 2: ',' expected after '\"'"),
        (b'text,m\na,1\n"b,1\nc,2\n', "line 3: unexpected end of data; expected a quote at the end"),
        (b"text,m\ra,1\rb,2\r", "line 1: new-line .*not in CR alone"),
        ("text,m\na,1\nJosé,2\n".encode("latin-1"), r"byte 4 of line 3 \(0xe9\) is not UTF-8"),
        ("text,m\na,1\n".encode("utf-16"), "it is UTF-16; expected UTF-8"),
    ],
)
def test_a_file_that_is_not_csv_is_an_error_that_names_the_line(tmp_path, content, message):
    (tmp_path / "rows.csv").write_bytes(content)
    for columns in (ColumnsSpec(), ColumnsSpec(metadata=("m",))):
        with pytest.raises(InvalidInput, match=rf"rows\.csv cannot be read: {message}"):
            read_records(tmp_path / "rows.csv", columns)


def test_columns_that_nobody_asked_for_may_have_any_name_and_content(tmp_path):
    path = write_csv(
        tmp_path / "rows.csv", ("", "text", "", "x", "x"), (1, "a", 2, 3, 4), ("b", "b", "", "", "")
    )
    assert [record.prompt for record in read_records(path, ColumnsSpec())] == ["a", "b"]


def test_a_byte_order_mark_is_left_out(tmp_path):
    (tmp_path / "rows.csv").write_bytes(b"\xef\xbb\xbftext,m\r\na,1\r\n")
    assert read_records(tmp_path / "rows.csv", ColumnsSpec(metadata=("m",)))[0].metadata == {"m": 1}


def test_a_long_cell_is_read(tmp_path):
    path = write_csv(tmp_path / "rows.csv", ("text",), ("long " * 100_000,))
    assert read_records(path, ColumnsSpec())[0].prompt == "long " * 100_000


@pytest.mark.parametrize("content", ["", "\n", "text,m\n", "\ufefftext,m"])
def test_a_file_without_rows_is_empty(tmp_path, content):
    (tmp_path / "rows.csv").write_text(content)
    with pytest.raises(InvalidInput, match=r"rows\.csv is empty; expected at least one document"):
        read_records(tmp_path / "rows.csv", ColumnsSpec(metadata=("m",)))


def test_a_missing_column_names_those_that_are_there(tmp_path):
    path = write_csv(tmp_path / "rows.csv", ("body", "m"), ("a", 1))
    with pytest.raises(ColumnNotFound, match=r"rows\.csv has no column 'text'; it has body, m"):
        read_records(path, ColumnsSpec())


def test_queries_are_texts(tmp_path):
    path = write_csv(tmp_path / "q.csv", ("prompt", "completion", "id", "fact"), ("a", "1990", "007", "NA"))
    queries = load_dataset_spec(DatasetSpec(path=str(path)), ("prompt", "completion"), ("id", "fact"))
    assert queries.to_list() == [{"prompt": "a", "completion": "1990", "id": "007", "fact": "NA"}]
