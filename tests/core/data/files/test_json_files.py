"""JSON files give documents whose ids, texts and metadata are those of the file, and errors that name the place."""

import json
import random

import pytest

from bergson_core.data import row_chunks
from bergson_core.data.dataset import load_dataset_spec
from bergson_core.data.files import json_rows
from bergson_core.errors import ColumnNotFound, InvalidInput
from bergson_core.schemas.documents import find_id_problem
from bergson_core.schemas.source import ColumnsSpec, DatasetSpec
from tests.core.helpers import read_records, write_lines

PLAIN = ColumnsSpec()
META = ColumnsSpec(metadata=("m",))


@pytest.fixture
def small_chunks(monkeypatch):
    monkeypatch.setattr(row_chunks, "CHUNK_ROWS", 3)
    monkeypatch.setattr(json_rows, "BLOCK_BYTES", 16)


TEXTS = [
    *("2023-10-14T00:00:00", "2023-10-14", "1990-05-06 07:08:09+02:00", "12:30"),
    *(
        "007",
        "1.50",
        "1e5",
        "NA",
        "None",
        "null",
        "nan",
        "true",
        "",
        " ",
        " x ",
        "\ufeff",
        "a\r\nb",
        "\0",
        "é😀 ",
    ),
]


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("suffix", ["jsonl", "json", "ndjson"])
def test_text_is_what_the_file_says(tmp_path, text, suffix):
    document_id = "0" if find_id_problem(text) else text
    row = {"text": text, "answer": text, "id": document_id, "m": text}
    columns = ColumnsSpec(prompt="text", completion="answer", id="id", metadata=("m",))
    (record,) = read_records(write_lines(tmp_path / f"rows.{suffix}", row), columns)
    assert (record.prompt, record.completion, record.id, record.metadata) == (
        text,
        text,
        document_id,
        {"m": text},
    )


@pytest.mark.parametrize(
    "written",
    [
        *(
            "0",
            "-1",
            "9007199254740993",
            "9223372036854775807",
            "-9223372036854775808",
            "18446744073709551615",
        ),
        *(
            "123456789012345678901234567890",
            "0.1",
            "1.0",
            "1e-07",
            "123456789.12345679",
            "true",
            "false",
            "null",
        ),
        *('{"a": [1, {"b": null}], "c": "x"}', "[]", '["a", 1, null]', "{}"),
    ],
)
@pytest.mark.parametrize("layout", ['{{"text": "a", "m": {}}}\n', '[{{"text": "a", "m": {}}}]'])
def test_metadata_is_the_value_of_the_file(tmp_path, written, layout):
    (tmp_path / "rows.json").write_text(layout.format(written))
    (record,) = read_records(tmp_path / "rows.json", META)
    assert json.dumps(record.metadata["m"]) == written


@pytest.mark.parametrize("written", ["1e400", "-1e999", "Infinity", "-Infinity"])
@pytest.mark.parametrize(
    "layout", ['{{"text": "a"}}\n{{"text": "b", "m": {}}}\n', '[{{"text": "a"}},{{"text": "b", "m": {}}}]']
)
def test_a_number_that_no_float_holds_is_an_error_where_it_is_asked_for(tmp_path, written, layout):
    (tmp_path / "rows.json").write_text(layout.format(written))
    with pytest.raises(InvalidInput, match=r"rows\.json: row 1 of column 'm' is infinite or beyond"):
        read_records(tmp_path / "rows.json", META)
    assert len(read_records(tmp_path / "rows.json", PLAIN)) == 2


def test_nan_is_no_value(tmp_path):
    (tmp_path / "rows.jsonl").write_text('{"text": "a", "m": NaN}\n{"text": "b", "m": "x"}\n')
    assert [record.metadata["m"] for record in read_records(tmp_path / "rows.jsonl", META)] == [None, "x"]


@pytest.mark.parametrize(
    ("first", "late"),
    [
        ({"n": None}, {"n": "x"}),
        ({}, {"n": "x"}),
        ({"n": 1}, {"n": 1.5}),
        ({"n": 1}, {"n": "x"}),
        ({"n": "2023-10-14"}, {"n": "soon"}),
        ({"n": []}, {"n": {"a": 1}}),
        ({"n": 1}, {"n": float("inf")}),
        ({"n": "a"}, {"n": "\ud800"}),
    ],
)
@pytest.mark.usefixtures("small_chunks")
def test_a_column_that_nobody_asked_for_may_change_its_type(tmp_path, first, late):
    rows = [{"text": f"text {k}", **(first if k < 10 else late)} for k in range(13)]
    for path in (tmp_path / "rows.jsonl", tmp_path / "rows.json"):
        write_lines(path, *rows) if path.suffix == ".jsonl" else path.write_text(json.dumps(rows, indent=1))
        assert [record.prompt for record in read_records(path, PLAIN)] == [row["text"] for row in rows]


@pytest.mark.parametrize(
    ("first", "late"),
    [
        ({"m": None}, {"m": "x"}),
        ({}, {"m": "x"}),
        ({"m": 1}, {"m": 1.5}),
        ({"m": 9007199254740993}, {"m": 0.5}),
        ({"m": []}, {"m": [1, "a", None]}),
        ({"m": {}}, {"m": {"a": {"b": []}}}),
        ({"m": [None]}, {"m": ["x"]}),
    ],
)
@pytest.mark.usefixtures("small_chunks")
def test_a_column_that_is_asked_for_may_widen(tmp_path, first, late):
    rows = [{"text": f"text {k}", **(first if k < 10 else late)} for k in range(13)]
    records = read_records(write_lines(tmp_path / "rows.jsonl", *rows), META)
    assert [record.metadata["m"] for record in records] == [row.get("m") for row in rows]


@pytest.mark.usefixtures("small_chunks")
def test_weights_may_widen(tmp_path):
    path = write_lines(
        tmp_path / "rows.jsonl", *({"text": "a", "w": 1 if k < 10 else 0.5} for k in range(13))
    )
    assert [record.weight for record in read_records(path, ColumnsSpec(weight="w"))] == [1.0] * 10 + [0.5] * 3


@pytest.mark.parametrize(
    ("first", "late", "kinds"),
    [
        (1990, "unknown", "is text .*is a number"),
        ("a", ["a"], "is a list .*is text"),
        ("a", 1, "is a number .*is text"),
        (True, 1, "is a number .*is a truth value"),
        (1, False, "is a truth value .*is a number"),
        ({}, [], r"is a list .*is an object"),
        ("1990", 1990, "is a number .*is text"),
    ],
)
@pytest.mark.usefixtures("small_chunks")
def test_a_column_of_several_types_is_an_error_that_names_both_places(tmp_path, first, late, kinds):
    rows = [{"text": "a"}, *({"text": "a", "m": first} for _ in range(10)), {"text": "b", "m": late}]
    path = write_lines(tmp_path / "rows.jsonl", *rows)
    with pytest.raises(InvalidInput, match=rf"rows\.jsonl: row 11 of column 'm' {kinds}") as caught:
        read_records(path, META)
    assert "row 1 of column 'm'" in str(caught.value)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"id": "a"}, "'text' is null or missing"),
        ({"id": "a", "text": None}, "'text' is null or missing"),
        ({"id": "a", "text": 3}, "'text' is int, expected text"),
        ({"id": "a", "text": ["a"]}, "'text' is list, expected text"),
        ({"id": "a", "text": True}, "'text' is bool, expected text"),
        ({"text": "a"}, "'id' is null or missing"),
        ({"id": None, "text": "a"}, "'id' is null or missing"),
        ({"id": "", "text": "a"}, "'id' is empty"),
        ({"id": 1.5, "text": "a"}, "'id' is 1.5; expected an id that is text or an integer"),
        ({"id": True, "text": "a"}, "'id' is True; expected"),
        ({"id": ["a"], "text": "a"}, r"'id' is \['a'\]; expected"),
    ],
)
def test_a_value_that_is_not_what_its_column_holds_is_an_error_that_names_file_row_and_column(
    tmp_path, row, message
):
    path = write_lines(tmp_path / "rows.jsonl", {"id": "x", "text": "a"}, row)
    with pytest.raises(InvalidInput, match=rf"rows\.jsonl: row 1 of column {message}"):
        read_records(path, ColumnsSpec(id="id"))


@pytest.mark.parametrize("weight", ["null", '"1"', "true", "NaN", "1e400", "[1]", "9" * 400])
def test_a_weight_that_is_no_finite_number_is_an_error(tmp_path, weight):
    (tmp_path / "rows.jsonl").write_text(f'{{"text": "a", "w": 1}}\n{{"text": "b", "w": {weight}}}\n')
    with pytest.raises(InvalidInput, match=r"row 1 of column 'w' is .*expected a finite number"):
        read_records(tmp_path / "rows.jsonl", ColumnsSpec(weight="w"))


def test_integers_of_any_size_are_ids(tmp_path):
    numbers = [7, 0, 2**53 + 1, 2**64, 10**40]
    path = write_lines(tmp_path / "rows.jsonl", *({"text": "a", "id": number} for number in numbers))
    assert [record.id for record in read_records(path, ColumnsSpec(id="id"))] == list(map(str, numbers))


LAYOUTS = ['{{"text": "a", "m": {}}}\n{{"text": "b"}}\n', '[{{"text": "a", "m": {}}}, {{"text": "b"}}]']


@pytest.mark.parametrize("layout", LAYOUTS, ids=["lines", "array"])
@pytest.mark.parametrize(
    "value", ["N", "-N", "[N]", '{"a": N}'], ids=["positive", "negative", "list", "object"]
)
def test_an_integer_that_python_does_not_read_is_an_error_where_it_is_asked_for(tmp_path, layout, value):
    written = value.replace("N", "9" * 5000)
    (tmp_path / "rows.json").write_text(layout.format(written))
    assert [record.prompt for record in read_records(tmp_path / "rows.json", PLAIN)] == ["a", "b"]
    with pytest.raises(
        InvalidInput, match=r"row 0 of column 'm' is an integer of 5,000 digits; expected at most 4,300"
    ):
        read_records(tmp_path / "rows.json", META)


@pytest.mark.parametrize("layout", LAYOUTS, ids=["lines", "array"])
@pytest.mark.parametrize("number", [10**4300 - 1, 1 - 10**4300])
def test_the_longest_integers_are_exact(tmp_path, layout, number):
    (tmp_path / "rows.json").write_text(layout.format(number))
    assert read_records(tmp_path / "rows.json", META)[0].metadata == {"m": number}


@pytest.mark.parametrize("number", [10**4096 - 1, 1 - 10**4095])
def test_the_longest_integers_that_are_ids_are_exact(tmp_path, number):
    (tmp_path / "ids.json").write_text(f'{{"text": "a", "m": {number}}}')
    assert read_records(tmp_path / "ids.json", ColumnsSpec(id="m"))[0].id == str(number)


@pytest.mark.parametrize("layout", LAYOUTS, ids=["lines", "array"])
def test_a_key_may_occur_again_inside_of_values(tmp_path, layout):
    value = {"text": [{"text": 'a "text" b', "m": 1}], "m": None}
    (tmp_path / "rows.json").write_text(layout.format(json.dumps(value)))
    assert read_records(tmp_path / "rows.json", META)[0].metadata == {"m": value}


def test_a_key_that_nobody_asked_for_may_occur_twice(tmp_path):
    (tmp_path / "rows.json").write_text('{"text": "a", "x": 1, "x": 2}')
    assert [record.prompt for record in read_records(tmp_path / "rows.json", PLAIN)] == ["a"]


def test_messages_come_as_the_file_has_them(tmp_path):
    chats = [
        [
            {"role": "user", "content": [{"type": "text", "text": "hi"}]},
            {"role": "assistant", "content": "yo"},
        ],
        [{"role": "assistant", "content": None, "tool_calls": [{"arguments": {"city": "Rome"}}]}],
        [{"role": "assistant", "content": "", "tool_calls": [{"arguments": {"day": "2023-10-14", "n": 1}}]}],
    ]
    path = write_lines(tmp_path / "rows.jsonl", *({"chat": chat} for chat in chats))
    records = read_records(path, ColumnsSpec(messages="chat"))
    del chats[1][0]["content"]  # a field that is null counts as missing
    assert [record.messages for record in records] == chats
    assert [json.loads(record.prompt) for record in records] == chats


def test_a_column_may_serve_two_purposes(tmp_path):
    path = write_lines(tmp_path / "rows.jsonl", {"text": "a", "id": 7, "w": 2})
    columns = ColumnsSpec(id="id", weight="w", metadata=("id", "text", "w"))
    (record,) = read_records(path, columns)
    assert (record.id, record.weight, record.metadata) == ("7", 2.0, {"id": 7, "text": "a", "w": 2})


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"text": "a"}\n{"text": \n', "line 2: the object does not end on its line"),
        (b'{"text": "a"}\n\n{"text": "b"} {"text": "c"}\n', "line 3, column 15: Extra data"),
        (b'{"text": "a"}\n{"text": "b', "line 2, column 10: Unterminated string"),
        (b'{"text": "a"}\n["a"]\n', "line 2: expected an object"),
        (b'"a"\n', "line 1: expected an object"),
        (b'{\n  "text": "a"\n}\n', "line 1: the object does not end .*one array of objects"),
        (b'{"text": "a"}\r{"text": "b"}\r', "line 1 holds line ends that are CR alone"),
        (b'{"text": "a"}\n{"text": "b", "text": "c"}\n', 'line 2: the object has the key "text" twice'),
        (
            b'[{"text": "a"},\n {"text": "b", "x": 1, "text": "b"}]',
            'line 2: the object has the key "text" twice',
        ),
        (b'{"text": "a"}\n{"text": "Jos\xe9"}\n', r"byte 14 of line 2 \(0xe9\) is not UTF-8"),
        (b'{"text": "a", "other": "Jos\xe9"}\n', r"byte 28 of line 1 \(0xe9\) is not UTF-8"),
        ('{"text": "a"}\n'.encode("utf-16"), "it is UTF-16; expected UTF-8 .*iconv -f UTF-16"),
        ('[{"text": "a"}]'.encode("utf-16-be").join([b"\xfe\xff", b""]), "it is UTF-16; expected UTF-8"),
        ('{"text": "a"}\n'.encode("utf-32"), "it is UTF-32; expected UTF-8"),
        (b'{"text": "a"}\n{"text": "b", "x": ' + b"[" * 100_000 + b"}\n", "line 2"),
        (b'[{"text": "a"},\n {"text": }]', "line 2: Expecting value near '.*: }]'"),
        (b'[{"text": "a"},\n {"text": "b"}', "line 2: expected , or ] in an array of objects, got the end"),
        (b'[{"text": "a"}\n {"text": "b"}]', "line 2: expected , or ] in an array of objects, got '{'"),
        (b'[{"text": "a"},\n\n "b"]', "line 3: expected an object"),
        (b'[{"text": "a"},\n]', "line 2: expected an object"),
        (b'[{"text": "a"}]\n{"text": "b"}', "line 2: expected nothing after the array"),
        (b'[{"text": "a"},\n {"text": "Jos\xe9"}]', r"byte 31 of the file, in line 2, \(0xe9\) is not UTF-8"),
        (b'[{"text": "a"},\n {"text": "Jos\xc3', r"byte 31 of the file, in line 2, \(0xc3\) is not UTF-8"),
    ],
)
@pytest.mark.parametrize("block_bytes", [5, 2**20])
def test_a_file_that_is_not_json_is_an_error_that_names_the_line(
    tmp_path, monkeypatch, content, message, block_bytes
):
    monkeypatch.setattr(json_rows, "BLOCK_BYTES", block_bytes)
    (tmp_path / "rows.json").write_bytes(content)
    with pytest.raises(InvalidInput, match=rf"rows\.json cannot be read: {message}"):
        read_records(tmp_path / "rows.json", PLAIN)


@pytest.mark.parametrize("layout", ["lines", "array"])
def test_a_byte_order_mark_and_blank_lines_are_left_out(tmp_path, layout):
    rows = ['{"text": "a"}', '{"text": "b"}']
    text = "\r\n \n".join(rows) if layout == "lines" else f" \n[{', '.join(rows)} ]\n"
    (tmp_path / "rows.jsonl").write_bytes(b"\xef\xbb\xbf" + text.encode())
    assert [record.prompt for record in read_records(tmp_path / "rows.jsonl", PLAIN)] == ["a", "b"]


@pytest.mark.parametrize("content", ["", "\n", " \r\n\n", "[]", " [ ]\n", "\ufeff"])
def test_a_file_without_rows_is_empty(tmp_path, content):
    (tmp_path / "rows.json").write_text(content)
    with pytest.raises(InvalidInput, match=r"rows\.json is empty; expected at least one document"):
        read_records(tmp_path / "rows.json", META)


@pytest.mark.parametrize("block_bytes", [1, 2, 7, 50, 4096])
def test_an_array_is_read_in_blocks_of_any_size(tmp_path, monkeypatch, block_bytes):
    monkeypatch.setattr(json_rows, "BLOCK_BYTES", block_bytes)
    draw = random.Random(block_bytes)
    rows = [
        {"text": 'é😀\\"]},{[' * draw.randrange(9), "m": [{"a": "]"}] * draw.randrange(3)} for _ in range(50)
    ]
    (tmp_path / "rows.json").write_text(json.dumps(rows, indent=draw.choice([None, 1]), ensure_ascii=False))
    records = read_records(tmp_path / "rows.json", META)
    assert [{"text": record.prompt, **record.metadata} for record in records] == rows


def test_a_line_that_does_not_fit_into_memory_is_refused(tmp_path, monkeypatch):
    for module in ("json_rows", "text_lines"):
        monkeypatch.setattr(f"bergson_core.data.files.{module}.MAX_LINE_BYTES", 1000)
    monkeypatch.setattr(json_rows, "BLOCK_BYTES", 100)
    for content in (
        '{"text": "a"}\n{"text": "' + "b" * 2000 + '"}\n',
        '[{"text": "a"},{"text": "' + "b" * 9000 + '"}]',
    ):
        (tmp_path / "rows.json").write_text(content)
        with pytest.raises(InvalidInput, match="has more than 1,000"):
            read_records(tmp_path / "rows.json", PLAIN)


def test_half_a_surrogate_pair_is_refused_where_it_is_asked_for(tmp_path):
    (tmp_path / "rows.jsonl").write_text('{"text": "a", "m": "x"}\n{"text": "\\ud800", "m": "\\udfff"}\n')
    for columns, column in (
        (PLAIN, "text"),
        (ColumnsSpec(prompt="m"), "m"),
        (ColumnsSpec(prompt="m", id="text"), "m"),
    ):
        with pytest.raises(InvalidInput, match=f"row 1 of column '{column}' holds half of a surrogate pair"):
            read_records(tmp_path / "rows.jsonl", columns)
    with pytest.raises(InvalidInput, match="row 1 of column 'm' holds half"):
        read_records(
            write_lines(tmp_path / "rows.jsonl", {"text": "a", "m": "x"}, {"text": "a", "m": "\ud800"}), META
        )


@pytest.mark.parametrize(
    "columns", [ColumnsSpec(prompt="body"), ColumnsSpec(metadata=("body",)), ColumnsSpec(id="body")]
)
def test_a_column_that_no_row_has_names_those_that_are_there(tmp_path, columns):
    path = write_lines(tmp_path / "rows.jsonl", {"text": "a", "url": "b"}, {"text": "c", "source": "d"})
    with pytest.raises(ColumnNotFound, match=r"rows\.jsonl has no column 'body'; it has text, url, source"):
        read_records(path, columns)


def test_queries_keep_their_texts_and_numbers(tmp_path):
    rows = [
        {"prompt": "2023-10-14", "completion": "007", "id": 2**62 + 1, "other": 1},
        {"prompt": "b", "completion": "NA", "id": 2, "other": "x"},
    ]
    spec = DatasetSpec(path=str(write_lines(tmp_path / "queries.jsonl", *rows)))
    queries = load_dataset_spec(spec, ("prompt", "completion"), ("id", "fact"))
    assert queries.to_list() == [{key: row[key] for key in ("prompt", "completion", "id")} for row in rows]
    with pytest.raises(ColumnNotFound, match="no column 'answer'; it has prompt, completion, id, other"):
        load_dataset_spec(spec, ("prompt", "answer"))
