"""A path names a file, the files of a directory, or those that match a pattern, in the order of their names."""

import gzip
import os
import time
from pathlib import Path

import pyarrow as pa
import pytest

from bergson_core.data.dataset import load_dataset_spec
from bergson_core.data.files.paths import find_data_files
from bergson_core.errors import DatasetNotFound, InvalidInput
from bergson_core.schemas.source import ColumnsSpec, DatasetSpec
from tests.core.helpers import read_records, write_lines


def compress(codec: str, content: bytes) -> bytes:
    return pa.Codec(codec).compress(content, asbytes=True)


def write_files(directory: Path, *names: str) -> Path:
    """Writes JSONL files that hold their own names, and returns the directory."""
    for name in names:
        path = directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        write_lines(path, {"text": name})
    return directory


def texts(path: Path | str) -> list[str]:
    return [record.prompt for record in read_records(path, ColumnsSpec())]


CONTENTS = {
    "jsonl": b'{"text": "a"}\n{"text": "b"}\n',
    "json": b'[{"text": "a"}, {"text": "b"}]',
    "csv": b"text,m\na,1\nb,2\n",
    "tsv": b"text\tm\na\t1\nb\t2\n",
    "txt": b"a\nb\n",
}


@pytest.mark.parametrize("kind", CONTENTS)
@pytest.mark.parametrize("codec", ["", "gz", "zst", "GZ"])
def test_every_kind_of_text_file_is_read_compressed_or_not(tmp_path, kind, codec):
    path = tmp_path / f"rows.{kind}{f'.{codec}' * bool(codec)}"
    codecs = {
        "": lambda content: content,
        "gz": gzip.compress,
        "zst": lambda content: compress("zstd", content),
    }
    path.write_bytes(codecs[codec.lower()](CONTENTS[kind]))
    assert texts(path) == ["a", "b"]


def test_a_compressed_file_of_several_parts_is_read_to_its_end(tmp_path):
    for suffix, codec in (("gz", "gzip"), ("zst", "zstd")):
        path = tmp_path / f"rows.jsonl.{suffix}"
        path.write_bytes(b"".join(compress(codec, f'{{"text": "{k}"}}\n'.encode()) for k in range(5)))
        assert texts(path) == list("01234")


@pytest.mark.parametrize(("suffix", "codec"), [("gz", "gzip"), ("zst", "zstd")])
def test_a_damaged_compressed_file_is_an_error_that_names_it(tmp_path, suffix, codec):
    path = tmp_path / f"rows.jsonl.{suffix}"
    content = os.urandom(4000).hex().encode()
    for damaged in (compress(codec, b'{"text": "%s"}\n' % content)[:-9], b'{"text": "a"}\n'):
        path.write_bytes(damaged)
        with pytest.raises(DatasetNotFound, match=rf"rows\.jsonl\.{suffix} cannot be read"):
            texts(path)
    path.write_bytes(b"")
    with pytest.raises(InvalidInput, match="is empty"):
        texts(path)


def test_the_files_of_a_directory_are_read_in_the_order_of_their_names(tmp_path):
    write_files(tmp_path, "b.jsonl", "a.jsonl", "c.json", ".hidden.jsonl", "_tmp.jsonl", "below/d.jsonl")
    (tmp_path / "README.md").write_text("about these files")
    (tmp_path / "d.jsonl.gz").write_bytes(gzip.compress(b'{"text": "d.jsonl.gz"}\n'))
    assert texts(tmp_path) == ["a.jsonl", "b.jsonl", "c.json", "d.jsonl.gz"]


@pytest.mark.parametrize(
    ("pattern", "names"),
    [
        ("*.jsonl", ["a1.jsonl", "b.jsonl"]),
        ("a?.jsonl", ["a1.jsonl"]),
        ("[bc].jsonl", ["b.jsonl"]),
        ("*/*.jsonl", ["x/a.jsonl", "y/b.jsonl"]),
        ("**/b.jsonl", ["b.jsonl", "y/b.jsonl", "y/z/b.jsonl"]),
        ("y/**/*.jsonl", ["y/b.jsonl", "y/z/b.jsonl"]),
    ],
)
def test_the_files_that_match_a_pattern_are_read_in_the_order_of_their_paths(
    tmp_path, monkeypatch, pattern, names
):
    write_files(tmp_path, "y/z/b.jsonl", "y/b.jsonl", "x/a.jsonl", "b.jsonl", "a1.jsonl", ".h.jsonl")
    assert texts(f"{tmp_path}/{pattern}") == names
    monkeypatch.chdir(tmp_path)
    assert texts(pattern) == texts(f"./{pattern}") == names


def test_a_pattern_of_any_depth_reads_each_file_once_however_many_links_lead_to_it(tmp_path):
    write_files(tmp_path, "a/b/x.jsonl", "a/y.jsonl", "c/z.jsonl")
    for link, target in {"a/loop": "..", "a/b/loop": "../..", "again": "a", "a/self": "self"}.items():
        (tmp_path / link).symlink_to(target)
    assert texts(f"{tmp_path}/**/*.jsonl") == ["a/b/x.jsonl", "a/y.jsonl", "c/z.jsonl"]
    assert texts(f"{tmp_path}/**/loop/**/*.jsonl") == ["a/b/x.jsonl", "a/y.jsonl", "c/z.jsonl"]
    assert sorted(texts(f"{tmp_path}/again/**/*.jsonl")) == ["a/b/x.jsonl", "a/y.jsonl", "c/z.jsonl"]
    assert texts(f"{tmp_path}/again/*.jsonl") == ["a/y.jsonl"]


def test_many_links_that_lead_to_each_other_take_no_time(tmp_path):
    write_files(tmp_path, *(f"d{number}/x.jsonl" for number in range(20)))
    for number in range(20):
        for other in range(20):
            (tmp_path / f"d{number}" / f"to{other}").symlink_to(f"../d{other}")
    started = time.process_time()
    assert len(texts(f"{tmp_path}/**/**/*.jsonl")) == 20
    assert time.process_time() - started < 2


def test_default_ids_count_on_over_the_files_and_errors_count_in_each(tmp_path):
    write_lines(tmp_path / "a.jsonl", {"text": "a"}, {"text": "b"})
    write_lines(tmp_path / "b.jsonl", {"text": "c"})
    assert [record.id for record in read_records(tmp_path, ColumnsSpec())] == ["0", "1", "2"]
    write_lines(tmp_path / "b.jsonl", {"text": "c"}, {"text": None})
    with pytest.raises(InvalidInput, match=r"b\.jsonl: row 1 of column 'text'"):
        texts(tmp_path)


def test_some_of_the_files_may_be_empty(tmp_path):
    (tmp_path / "a.jsonl").touch()
    write_lines(tmp_path / "b.jsonl", {"text": "b"})
    assert texts(tmp_path) == ["b"]


@pytest.mark.parametrize(
    ("names", "pattern", "message"),
    [
        (
            ("a.jsonl", "b.csv"),
            "",
            r"files of several types \(a\.jsonl, b\.csv\); expected files of one type",
        ),
        (("a.jsonl", "b.csv"), "/*", r"files of several types"),
        (("a.jsonl", "README.md"), "/*", r"README\.md has an unknown suffix; expected \.jsonl"),
        (
            ("train-00.jsonl", "test-00.jsonl"),
            "",
            r"several splits \(test-00\.jsonl, train-00\.jsonl\); expected",
        ),
        (("a.jsonl",), "/*.csv", r"no file matches .*/\*\.csv"),
        (("a.jsonl",), "/*/../a.jsonl", r"expected a pattern without \.\. after"),
        (
            ("README.md",),
            "",
            r"has no files of a known type and was not made by save_to_disk; expected \.jsonl",
        ),
        (("a.parquet.gz",), "/a.parquet.gz", "unknown suffix"),
        (("a.jsonl.bz2",), "/a.jsonl.bz2", r"unknown suffix; expected .* with \.gz or \.zst"),
        (("a.jsonl",), "/b.jsonl.gz", "no such file or directory"),
    ],
)
def test_files_that_cannot_be_read_together_are_an_error(tmp_path, names, pattern, message):
    write_files(tmp_path, *names)
    with pytest.raises(DatasetNotFound, match=message):
        load_dataset_spec(DatasetSpec(path=f"{tmp_path}{pattern}"))


@pytest.mark.parametrize("names", [("train-00.jsonl", "train-01.jsonl"), ("contest.jsonl", "latest.jsonl")])
def test_files_of_one_split_are_read_together(tmp_path, names):
    assert texts(write_files(tmp_path, *names)) == sorted(names)


def test_another_split_than_train_is_refused(tmp_path):
    for path in (write_files(tmp_path, "a.jsonl"), f"{tmp_path}/*.jsonl", tmp_path / "a.jsonl"):
        with pytest.raises(DatasetNotFound, match="has only the split 'train', got 'test'"):
            read_records(path, ColumnsSpec(), split="test")


def test_a_subset_is_refused(tmp_path):
    for path in (write_files(tmp_path, "a.jsonl"), f"{tmp_path}/*.jsonl", tmp_path / "a.jsonl"):
        with pytest.raises(InvalidInput, match="only datasets of the hub have subsets"):
            read_records(path, ColumnsSpec(), subset="en")


def test_a_directory_of_save_to_disk_is_none_of_files(tmp_path):
    (tmp_path / "state.json").write_text("{}")
    assert find_data_files(str(tmp_path)) == []
