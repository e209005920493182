"""Files and streams are read once, give the same documents with `streaming` and without, and leave nothing behind."""

import json
import os
import signal
from pathlib import Path

import pytest
from datasets import Dataset

from bergson_core import build_index
from bergson_core.data import row_chunks, streaming
from bergson_core.data.documents import load_documents
from bergson_core.data.streaming import STREAMED_FILE, load_documents_streaming
from bergson_core.errors import Cancelled, IndexExists, InvalidInput
from bergson_core.schemas.build import BuildSpec, GradientSpec
from bergson_core.schemas.record import Record
from bergson_core.schemas.results import Progress
from bergson_core.schemas.source import ColumnsSpec, DatasetSpec
from tests import tiny
from tests.core.helpers import INVALID_BUILDS, file_hashes, make_spec, save_dataset, stop_after, write_rows
from tests.processes import forkserver_context

COLUMNS = ColumnsSpec(id="id", metadata=("nested", "number", "missing"))


def streamed(spec: BuildSpec, **changes: object) -> BuildSpec:
    """Returns the same build, which reads its dataset as a stream."""
    dataset = (spec.dataset or DatasetSpec(path="nothing")).model_copy(update={"streaming": True})
    return spec.model_copy(update={"dataset": dataset, **changes})


def read(spec: BuildSpec, root: Path) -> list[Record]:
    root.mkdir(exist_ok=True)
    return [
        record
        for chunk in load_documents_streaming(spec, root, lambda _: None).iter_chunks()
        for record in chunk
    ]


@pytest.fixture
def small_batches(monkeypatch):
    monkeypatch.setattr(row_chunks, "CHUNK_ROWS", 16)
    monkeypatch.setattr(streaming, "_BATCH_ROWS", 16)


@pytest.mark.usefixtures("small_batches")
def test_a_streamed_index_has_the_same_bytes_and_nothing_of_the_stream(spec, index, tmp_path):
    path = tmp_path / "facts"
    build_index(streamed(spec), path, shard_rows=16)
    assert file_hashes(path) == file_hashes(index)
    assert not [file for file in path.rglob("*") if "documents" in file.name or file.name == "building.json"]


@pytest.mark.usefixtures("small_batches")
@pytest.mark.parametrize("kind", ["jsonl", "json", "array", "csv", "parquet"])
def test_every_kind_of_file_gives_the_documents_that_it_gives_without_streaming(kind, tmp_path):
    is_json = kind in ("jsonl", "array")
    rows = [
        {
            "id": f"doc-{k}",
            "text": text,
            "nested": [None, {"year": 1990 + k}, {"years": [k, "unknown"]}][k % 3] if is_json else k % 2 == 0,
            "number": None if k < 20 else k / 4,
            "not asked for": [k, "of any type"][k % 2] if is_json else k,
        }
        | ({"missing": [k]} if k > 30 or not is_json else {})
        for k, text in enumerate(tiny.texts(40))
    ]
    path = tmp_path / f"rows.{'json' if kind == 'array' else kind}"
    if kind == "array":
        path.write_text(json.dumps(rows))
    elif kind == "jsonl":
        write_rows(tmp_path, *rows)
    else:
        save_dataset(Dataset.from_list(rows), tmp_path, kind)
    spec = BuildSpec(model="any", dataset=DatasetSpec(path=str(path)), columns=COLUMNS)
    (documents,) = load_documents(spec).iter_chunks()
    assert read(streamed(spec), tmp_path / "index") == documents
    on_disk = Dataset.from_file(str(tmp_path / "index" / STREAMED_FILE))
    assert set(on_disk.column_names) == {"id", "prompt", "metadata"}
    if is_json:
        assert [record.metadata for record in documents] == [
            {name: row.get(name) for name in COLUMNS.metadata} for row in rows
        ]


@pytest.mark.usefixtures("small_batches")
def test_rows_are_counted_while_a_stream_is_read(spec, tmp_path):
    reports: list[Progress] = []
    load_documents_streaming(streamed(spec), tmp_path, reports.append)
    assert [(progress.stage, progress.done, progress.total, progress.eta_s) for progress in reports] == [
        ("read", done, 0, None) for done in (0, 16, 32, 40)
    ]


def test_a_stopped_build_goes_on_from_what_it_has_read(sources, index, tmp_path):
    documents = Path(tmp_path / "documents.jsonl")
    documents.write_bytes((sources / "documents.jsonl").read_bytes())
    spec = streamed(make_spec(sources, dataset=DatasetSpec(path=str(documents))))
    with pytest.raises(Cancelled):
        build_index(spec, tmp_path / "facts", shard_rows=16, report=stop_after(16))
    documents.unlink()
    build_index(spec, tmp_path / "facts", shard_rows=16)
    assert file_hashes(tmp_path / "facts") == file_hashes(index)


@pytest.mark.usefixtures("small_batches")
def test_a_build_that_is_stopped_in_the_middle_of_a_stream_reads_it_again(spec, index, tmp_path):
    def report(progress: Progress) -> None:
        if progress.done == 16:
            raise Cancelled("stopped by the test")

    path = tmp_path / "facts"
    with pytest.raises(Cancelled):
        build_index(streamed(spec), path, shard_rows=16, report=report)
    assert {file.name for file in path.iterdir()} <= {".lock", "building.json"}
    build_index(streamed(spec), path, shard_rows=16)
    assert file_hashes(path) == file_hashes(index)


def read_and_die(spec: BuildSpec, path: Path) -> None:
    def report(progress: Progress) -> None:
        if progress.stage == "read" and progress.done:
            os.kill(os.getpid(), signal.SIGKILL)

    build_index(spec, path, report=report)


def test_a_file_that_a_killed_process_has_half_written_is_not_used(spec, index, tmp_path):
    path = tmp_path / "facts"
    process = forkserver_context().Process(target=read_and_die, args=(streamed(spec), path))
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    assert {file.name for file in path.iterdir()} == {".lock", "building.json", f".{STREAMED_FILE}.tmp"}
    build_index(streamed(spec), path, shard_rows=16)
    assert file_hashes(path) == file_hashes(index)
    assert not list(path.glob("*documents*")) + list(path.glob(".documents*"))


def test_documents_that_were_read_for_one_build_are_not_used_for_another(sources, spec, tmp_path):
    path = tmp_path / "facts"
    with pytest.raises(Cancelled):
        build_index(streamed(spec), path, shard_rows=16, report=stop_after(16))
    for other in (spec, streamed(spec, gradients=GradientSpec(projection_dim=5))):
        with pytest.raises(IndexExists, match="another"):
            build_index(other, path)


def test_a_build_starts_again_after_its_documents_were_corrected(sources, tmp_path):
    path = tmp_path / "facts"
    path.mkdir()
    spec = streamed(make_spec(sources, dataset=write_rows(tmp_path, {"text": "a b"}, {"text": None})))
    spec = spec.model_copy(update={"columns": ColumnsSpec()})
    with pytest.raises(InvalidInput, match="row 1"):
        build_index(spec, path)
    write_rows(tmp_path, {"text": "a b"}, {"text": "c d"})
    assert build_index(spec, path).rows == 2


@pytest.mark.parametrize("case", INVALID_BUILDS)
def test_invalid_builds_are_refused_as_without_streaming(case, sources, tmp_path):
    error, message, changes = INVALID_BUILDS[case]
    with pytest.raises(error, match=message):
        build_index(streamed(make_spec(sources, **changes(tmp_path))), tmp_path / "index")
    assert not (tmp_path / "index").exists()


def test_a_build_without_streaming_reads_the_files_again(tmp_path):
    write_rows(tmp_path, {"text": "a b"})
    spec = BuildSpec(model="any", dataset=DatasetSpec(path=str(tmp_path / "rows.jsonl")))
    assert [record.prompt for record in read(spec, tmp_path / "index")] == ["a b"]
    write_rows(tmp_path, {"text": "c d"})
    assert [record.prompt for record in read(spec, tmp_path / "index")] == ["c d"]


@pytest.mark.parametrize("name", ["rows.csv", "rows.jsonl", "rows.parquet"])
def test_a_stream_without_rows_is_refused_as_empty(name, tmp_path):
    path = tmp_path / name
    path.write_text({"rows.csv": "text,id\n", "rows.jsonl": "\n"}.get(name, ""))
    if name == "rows.parquet":
        Dataset.from_dict({"text": ["one"]}).select([]).to_parquet(path)
    spec = BuildSpec(model="any", dataset=DatasetSpec(path=str(path), streaming=True))
    with pytest.raises(InvalidInput, match=rf"{name} is empty"):
        read(spec, tmp_path / "index")


def test_a_saved_directory_is_read_where_it_is(tmp_path):
    path = save_dataset(
        Dataset.from_dict({"text": ["one", "two, three"], "label": [1, 2]}), tmp_path, "directory"
    )
    spec = BuildSpec(model="any", dataset=DatasetSpec(path=path, streaming=True))
    assert [record.prompt for record in read(spec, tmp_path / "index")] == ["one", "two, three"]
    assert list((tmp_path / "index").iterdir()) == []
