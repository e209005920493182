"""Datasets are not trusted: they make no other file be read, and do not unpack to far more than their size."""

import gzip
import json
import shutil
import zipfile
from contextlib import suppress
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import Dataset, DatasetDict, data_files

from bergson_core.data import hub, parquet_guard
from bergson_core.data.dataset import load_dataset_spec
from bergson_core.data.documents import load_documents
from bergson_core.errors import DatasetNotFound, InvalidInput
from bergson_core.schemas.build import BuildSpec
from bergson_core.schemas.source import ColumnsSpec, DatasetSpec


def spec_of(path: Path, *metadata: str, streaming: bool = False) -> BuildSpec:
    dataset = DatasetSpec(path=str(path), streaming=streaming)
    return BuildSpec(model="m", dataset=dataset, columns=ColumnsSpec(metadata=metadata))


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("kind", ["gzip", "zip", "zip after text"])
def test_an_archive_under_another_name_is_not_unpacked(tmp_path, kind, streaming):
    path, line = tmp_path / "bomb.jsonl", b'{"text": "a"}\n' * 1000
    if kind == "gzip":
        path.write_bytes(gzip.compress(line))
    else:
        path.write_bytes(line if kind == "zip after text" else b"")
        with zipfile.ZipFile(path, "a", zipfile.ZIP_DEFLATED) as file:
            file.writestr("a.jsonl", line)
    with pytest.raises(DatasetNotFound, match="compressed or an archive"):
        load_documents(spec_of(path, streaming=streaming))


@pytest.mark.parametrize("codec", ["gzip", "zstd"])
@pytest.mark.parametrize("layout", ["lines", "array", "csv", "txt"])
def test_a_compressed_file_of_which_far_more_comes_out_than_its_size_is_refused(
    tmp_path, monkeypatch, codec, layout
):
    monkeypatch.setattr(parquet_guard, "_MAX_SMALL_BYTES", 2**17)
    content = {
        "lines": b'{"text": "a"}\n' * 10**5,
        "array": b"[" + b'{"text": "a"},' * 10**5 + b'{"text": "a"}]',
        "csv": b"text\n" + b"a\n" * 10**6,
        "txt": b"a" * 10**6,
    }[layout]
    suffix = {"lines": "jsonl", "array": "json"}.get(layout, layout)
    path = tmp_path / f"bomb.{suffix}.{'gz' if codec == 'gzip' else 'zst'}"
    path.write_bytes(pa.Codec(codec, 9).compress(content, asbytes=True))
    assert path.stat().st_size < 10_000
    with pytest.raises(
        DatasetNotFound, match=r"unpacks to more than .*; expected at most 100 times its size"
    ):
        load_documents(spec_of(path))


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("kind", ["once", "pages", "nested"])
def test_a_parquet_file_that_decodes_to_far_more_than_its_size_is_refused(
    tmp_path, monkeypatch, kind, streaming
):
    monkeypatch.setattr(parquet_guard, "_MAX_SMALL_BYTES", 2**24)
    path, text = tmp_path / "bomb.parquet", "a" * 2**20
    once = pa.DictionaryArray.from_arrays(pa.array([0] * 100_000, pa.int32()), pa.array([text]))
    columns = {"once": once, "pages": [text] * 40, "nested": [[{"content": text}]] * 40}
    table = pa.table({"text": columns[kind]})
    pq.write_table(table, path, compression="zstd", use_dictionary=kind == "once")
    assert path.stat().st_size < 100_000
    with pytest.raises(DatasetNotFound, match="at most 100 times its size"):
        load_documents(spec_of(path, streaming=streaming))


def test_a_parquet_file_with_a_repetitive_column_is_read(tmp_path):
    table = pa.table({"text": [f"text {n}" for n in range(3000)], "source": ["wiki"] * 3000})
    pq.write_table(table, tmp_path / "a.parquet", row_group_size=2000)
    documents = load_documents(spec_of(tmp_path / "a.parquet", "source"))
    assert [record.prompt for chunk in documents.iter_chunks() for record in chunk] == table[
        "text"
    ].to_pylist()
    assert documents.read([2999])[0].metadata == {"source": "wiki"}


@pytest.mark.parametrize("name", ["[ab].jsonl", "*.jsonl", "a?.jsonl", "a::b.jsonl"])
def test_a_file_whose_name_is_a_pattern_is_read_and_no_other(tmp_path, name):
    (tmp_path / name).write_text('{"text": "mine"}\n')
    (tmp_path / "a.jsonl").write_text('{"text": "theirs"}\n')
    assert load_dataset_spec(DatasetSpec(path=str(tmp_path / name)))["text"] == ["mine"]


@pytest.mark.parametrize("absolute", [True, False])
def test_a_saved_dataset_that_names_files_elsewhere_is_refused(tmp_path, absolute):
    for name in ("secret", "mine"):
        Dataset.from_list([{"text": name}]).save_to_disk(tmp_path / name)
    named = (tmp_path / "secret" if absolute else Path("../secret")) / "data-00000-of-00001.arrow"
    path = tmp_path / "mine" / "state.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"_data_files": [{"filename": str(named)}]}))
    with pytest.raises(DatasetNotFound, match="expected files of its own"):
        load_dataset_spec(DatasetSpec(path=str(tmp_path / "mine")))


def test_a_saved_dataset_that_names_splits_elsewhere_is_refused(tmp_path):
    for name in ("secret", "mine"):
        DatasetDict({"train": Dataset.from_list([{"text": name}])}).save_to_disk(tmp_path / name)
    (tmp_path / "mine" / "dataset_dict.json").write_text('{"splits": ["../secret/train"]}')
    shutil.rmtree(tmp_path / "mine" / "train")
    with pytest.raises(DatasetNotFound, match="expected files of its own"):
        load_dataset_spec(DatasetSpec(path=str(tmp_path / "mine"), split="../secret/train"))


REPOSITORY = "hf://datasets/org/data@0123456789012345678901234567890123456789"


@pytest.fixture
def looked_up(monkeypatch):
    """Patterns that the datasets library looks up; it finds no files."""
    patterns: list[str] = []

    def resolve(pattern: str, base_path: str, **_options: Any) -> list[str]:
        patterns.append(pattern)
        return []

    monkeypatch.setattr(data_files, "resolve_pattern", resolve)
    return patterns


def load_named(monkeypatch: pytest.MonkeyPatch, pattern: str, base_path: str = REPOSITORY) -> None:
    """Loads a hub dataset whose README names this pattern as its data."""

    def load_dataset(*_args: Any, **_options: Any) -> None:
        data_files.DataFilesDict.from_patterns({"train": [pattern]}, base_path=base_path)
        data_files.DataFilesPatternsDict.from_patterns({"train": [pattern]}).resolve(base_path)
        with suppress(data_files.EmptyDatasetError):
            data_files.get_data_patterns(base_path)

    monkeypatch.setattr(hub, "load_dataset", load_dataset)
    load_dataset_spec(DatasetSpec(path="org/data"))


@pytest.mark.parametrize(
    "named",
    [
        *(
            "/etc/passwd",
            "file:///etc/passwd",
            "../other/x.csv",
            "data/../../x.csv",
            "data/%2e%2e/%2e%2e/x.csv",
        ),
        *("http://169.254.169.254/x.json", "ftp://10.0.0.1/x.csv", "hf://datasets/org/secret@main/x.csv"),
        *("zip://x.csv::http://10.0.0.1/x.zip", "https://huggingface.co/datasets/org/secret/resolve/main/x"),
    ],
)
def test_a_hub_dataset_that_names_files_elsewhere_is_refused_before_they_are_looked_up(
    monkeypatch, looked_up, named
):
    with pytest.raises(DatasetNotFound, match="expected files of its own"):
        load_named(monkeypatch, named)
    assert looked_up == []


@pytest.mark.parametrize("directory", ["/etc", "hf://datasets/org/secret@main", REPOSITORY + "/../.."])
def test_a_hub_dataset_in_a_directory_elsewhere_is_refused_before_it_is_looked_up(
    monkeypatch, looked_up, directory
):
    with pytest.raises(DatasetNotFound, match="expected files of its own"):
        load_named(monkeypatch, "**", directory)
    assert looked_up == []


def test_a_hub_dataset_with_files_of_its_own_is_loaded(monkeypatch, looked_up):
    resolve = data_files.resolve_pattern
    for named in ("data/train-*", "https://huggingface.co/datasets/org/data/resolve/main/x.parquet"):
        load_named(monkeypatch, named)
        assert named in looked_up
    assert data_files.resolve_pattern is resolve


@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize("kind", ["Audio", "Image"])
def test_no_path_or_url_in_a_row_is_opened(tmp_path, kind, nested):
    struct_type = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    value: Any = {"bytes": None, "path": "http://127.0.0.1:9/x"}
    column = pa.array([[value]], pa.list_(struct_type)) if nested else pa.array([value], struct_type)
    feature = {"_type": "List", "feature": {"_type": kind}} if nested else {"_type": kind}
    columns = {"text": ["a"], "it": column}
    features = {"text": {"dtype": "string", "_type": "Value"}, "it": feature}
    about = {"huggingface": json.dumps({"info": {"features": features}})}
    pq.write_table(pa.table(columns).replace_schema_metadata(about), tmp_path / "rows.parquet")
    with pytest.raises(InvalidInput, match="'it' holds"):
        load_documents(spec_of(tmp_path / "rows.parquet", "it"))
    assert load_documents(spec_of(tmp_path / "rows.parquet")).read(range(1))[0].prompt == "a"
