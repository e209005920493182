"""Tables and arrays are written whole or not at all."""

import csv
import errno
import json
import signal
import subprocess
import sys

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from bergson_core import AttributionIndex, score_corpus, write_table
from bergson_core.errors import DiskFull, InvalidInput
from bergson_core.utils import table_writer
from tests.core.helpers import query

SUFFIXES = ["jsonl", "csv", "parquet"]


def reader(*scores: list[float], error: BaseException | None = None) -> pa.RecordBatchReader:
    """Reads a batch for each list of scores, and then raises the error."""
    schema = pa.schema([("id", pa.string()), ("score", pa.float32()), ("metadata", pa.string())])

    def batches():
        for part in scores:
            texts = ['{"x": NaN, "y": "é\\ud800"}'] * len(part)
            yield pa.record_batch(
                [[f"d{k}" for k in part], pa.array(part, pa.float32()), texts], schema=schema
            )
        if error is not None:
            raise error

    return pa.RecordBatchReader.from_batches(schema, batches())


def read(path) -> list[dict]:
    if path.suffix == ".parquet":
        rows = pq.read_table(path).to_pylist()
        return [row | {"metadata": table_writer.parse_metadata(row["metadata"])} for row in rows]
    if path.suffix == ".csv":
        rows = list(csv.DictReader(path.open(encoding="utf-8", newline="")))
        return [{name: _parse_cell(name, text) for name, text in row.items()} for row in rows]
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


def _parse_cell(name: str, text: str) -> object:
    if text == "":
        return None
    return text if name == "id" else json.loads(text)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_every_format_holds_every_row(tmp_path, suffix):
    path = tmp_path / f"scores.{suffix}"
    assert write_table(reader([1, 2], [3]), path) == 3
    assert read(path) == [
        {"id": f"d{k}", "score": k, "metadata": {"x": None, "y": "é\ud800"}} for k in (1, 2, 3)
    ]
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("aggregate", ["mean", "each"])
def test_scores_of_a_corpus_are_read_back_as_they_were_written(index, tmp_path, suffix, aggregate):
    opened, path = AttributionIndex.open(index), tmp_path / f"scores.{suffix}"
    queries = [query(), query("Person 2")]
    assert write_table(score_corpus(opened, queries, aggregate=aggregate), path) == 40
    expected = score_corpus(opened, queries, aggregate=aggregate).read_all().to_pylist()
    assert read(path) == [row | {"metadata": json.loads(row["metadata"])} for row in expected]


def test_a_csv_cell_with_commas_quotes_and_lines_is_read_back(tmp_path):
    ids = ["a,b", 'say "x"', "two\nlines", " space ", "ä\u4e2d"]
    batch = pa.record_batch({"id": ids, "score": [0.1, None, 1e-30, 2.0, 3.0]})
    write_table(pa.RecordBatchReader.from_batches(batch.schema, [batch]), tmp_path / "scores.csv")
    assert [(row["id"], row["score"]) for row in read(tmp_path / "scores.csv")] == list(
        zip(ids, [0.1, None, 1e-30, 2.0, 3.0], strict=True)
    )
    assert (tmp_path / "scores.csv").read_bytes().startswith(b"id,score\n")


def test_small_batches_share_a_row_group(tmp_path, monkeypatch):
    write_table(reader(*([k] for k in range(9))), tmp_path / "one.parquet")
    assert pq.ParquetFile(tmp_path / "one.parquet").num_row_groups == 1
    monkeypatch.setattr(table_writer, "_ROW_GROUP_BYTES", 1)
    write_table(reader(*([k] for k in range(9))), tmp_path / "nine.parquet")
    assert pq.ParquetFile(tmp_path / "nine.parquet").num_row_groups == 9
    assert read(tmp_path / "one.parquet") == read(tmp_path / "nine.parquet")


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_table_without_rows_is_a_file_too(tmp_path, suffix):
    assert write_table(reader(), tmp_path / f"none.{suffix}") == 0
    assert read(tmp_path / f"none.{suffix}") == []


@pytest.mark.parametrize(
    "error", [RuntimeError("broken"), KeyboardInterrupt(), OSError(errno.ENOSPC, "full")], ids=repr
)
@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_failed_write_leaves_the_old_file(tmp_path, suffix, error):
    path = tmp_path / f"scores.{suffix}"
    expected = DiskFull if isinstance(error, OSError) else type(error)
    with pytest.raises(expected):
        write_table(reader([1.0], error=error), path)
    assert list(tmp_path.iterdir()) == []
    path.write_text("before")
    with pytest.raises(expected):
        write_table(reader([1.0], error=error), path, overwrite=True)
    assert [file.read_text() for file in tmp_path.iterdir()] == ["before"]


KILLED = """
import os, signal, sys
import pyarrow as pa
from bergson_core.utils.table_writer import write_table

def rows():
    yield from [pa.record_batch({"score": [1.0] * 10_000})] * 20
    os.kill(os.getpid(), signal.SIGKILL)

write_table(pa.RecordBatchReader.from_batches(pa.schema({"score": pa.float64()}), rows()), sys.argv[1])
"""


def test_a_killed_write_leaves_no_output(tmp_path):
    process = subprocess.run([sys.executable, "-c", KILLED, tmp_path / "scores.jsonl"], check=False)
    assert process.returncode == -signal.SIGKILL
    assert all(path.name.startswith(".scores.jsonl.") for path in tmp_path.iterdir())
    assert write_table(reader([1.0]), tmp_path / "scores.jsonl") == 1


def test_a_file_that_appears_during_the_write_is_kept(tmp_path):
    path = tmp_path / "scores.jsonl"

    def rows():
        yield pa.record_batch({"score": [1.0]})
        path.write_text("theirs")

    with pytest.raises(InvalidInput, match="there already"):
        write_table(pa.RecordBatchReader.from_batches(pa.schema({"score": pa.float64()}), rows()), path)
    assert [file.read_text() for file in tmp_path.iterdir()] == ["theirs"]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("scores.xlsx", r"expected \.jsonl, \.csv, \.parquet"),
        ("nowhere/scores.jsonl", "no directory"),
        ("taken.jsonl", "there already"),
        ("directory.jsonl", "is a directory"),
    ],
)
def test_a_path_that_cannot_be_written_is_refused_before_a_row_is_read(tmp_path, name, message):
    (tmp_path / "taken.jsonl").write_text("before")
    (tmp_path / "directory.jsonl").mkdir()
    with pytest.raises(InvalidInput, match=message):
        write_table(reader(error=AssertionError("a row was made")), tmp_path / name)
    assert {path.name for path in tmp_path.iterdir()} == {"taken.jsonl", "directory.jsonl"}
    assert (tmp_path / "taken.jsonl").read_text() == "before"


@pytest.mark.parametrize("shape", [(0,), (1,), (5,), (0, 3), (1, 3), (4, 3), (2, 0)])
def test_an_array_is_read_back_as_it_was_written(tmp_path, shape):
    array = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    for name in ("scores.json", "scores.npy"):
        table_writer.write_array(array, tmp_path / name)
    assert json.loads((tmp_path / "scores.json").read_text()) == array.tolist()
    np.testing.assert_array_equal(np.load(tmp_path / "scores.npy"), array)


@pytest.mark.parametrize("suffix", [".json", ".npy"])
def test_an_array_that_fails_to_be_written_leaves_the_old_file(tmp_path, monkeypatch, suffix):
    path = tmp_path / f"scores{suffix}"

    def fail(_array, file):
        file.write(b"half")
        raise OSError(errno.ENOSPC, "full")

    monkeypatch.setitem(table_writer._ARRAY_WRITERS, suffix, fail)
    path.write_text("before")
    with pytest.raises(InvalidInput, match="there already"):
        table_writer.write_array(np.zeros(3), path)
    with pytest.raises(DiskFull):
        table_writer.write_array(np.zeros(3), path, overwrite=True)
    assert [file.read_text() for file in tmp_path.iterdir()] == ["before"]
