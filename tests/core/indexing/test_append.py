"""An append computes the rows of its own documents alone, as the build would, and is published whole or not at all."""

import json
import os
import shutil
import signal
from pathlib import Path

import pytest
import torch
from datasets import Dataset

from bergson_core import (
    AttributionIndex,
    append_documents,
    build_index,
    compact_index,
    fit_profile,
    take_down_document,
)
from bergson_core.errors import (
    Cancelled,
    ColumnNotFound,
    IdsExist,
    IndexBusy,
    IndexCorrupt,
    IndexNotFound,
    InvalidInput,
    TooLong,
)
from bergson_core.indexing.output_directory import index_write_lock
from bergson_core.schemas.build import AppendSpec, GradientSpec, ScoringSpec
from bergson_core.schemas.record import Record
from bergson_core.schemas.results import Progress
from bergson_core.schemas.source import ColumnsSpec, DatasetSpec
from bergson_core.shards.row_encoder import open_row_encoder
from bergson_core.storage.manifest import iter_published_indexes, read_manifest
from bergson_core.tokens.batching import iter_batches
from bergson_core.tokens.document_tokens import tokenize_records
from tests import tiny
from tests.core.helpers import make_spec, query, save_dataset, write_lines
from tests.processes import forkserver_context

FIRST, ALL = 28, 40


def rows_of(start: int, stop: int) -> list[dict]:
    return [
        {"id": f"doc-{k}", "text": text, "source": "wiki" if k % 2 else "web", "number": k}
        for k, text in enumerate(tiny.texts(stop))
    ][start:]


def write(path: Path, rows: list[dict]) -> DatasetSpec:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return DatasetSpec(path=str(path))


@pytest.fixture(scope="module")
def parts(sources, tmp_path_factory) -> Path:
    """A directory with first.jsonl and rest.jsonl, and the index `facts` of the first."""
    directory = tmp_path_factory.mktemp("parts")
    write(directory / "rest.jsonl", rows_of(FIRST, ALL))
    spec = make_spec(sources, dataset=write(directory / "first.jsonl", rows_of(0, FIRST)))
    build_index(spec, directory / "facts", shard_rows=16)
    return directory


@pytest.fixture
def facts(parts, tmp_path) -> Path:
    """A copy of the index that may be changed."""
    return shutil.copytree(parts / "facts", tmp_path / "facts")


@pytest.fixture
def rest(parts) -> AppendSpec:
    return AppendSpec(dataset=DatasetSpec(path=str(parts / "rest.jsonl")))


def stored_rows(index: Path) -> torch.Tensor:
    return torch.cat([shard.rows(slice(None)) for shard in AttributionIndex.open(index).shards])


@pytest.mark.parametrize("kind", ["float16", "int8", "sign"])
@pytest.mark.parametrize("normalizer", ["adafactor", "kfac"])
def test_appended_rows_are_made_with_the_statistics_of_the_build(
    sources, parts, rest, tmp_path, kind, normalizer
):
    settings = GradientSpec(projection_dim=4, rows=kind, normalizer=normalizer)
    changes = {"gradients": settings, "dataset": DatasetSpec(path=str(parts / "first.jsonl"))}
    build_index(make_spec(sources, **changes), tmp_path / "facts", shard_rows=16)
    append_documents(tmp_path / "facts", rest, shard_rows=16)
    index = AttributionIndex.open(tmp_path / "facts")
    rows = stored_rows(tmp_path / "facts")
    assert len(rows) == ALL
    encoder = open_row_encoder(index.manifest.spec, tmp_path / "facts", index.model)
    records = [Record(row["id"], row["text"], None, {}) for row in rows_of(FIRST, ALL)]
    for batch in iter_batches(tokenize_records(index.model.tokenizer, records), 4096):
        blocks, _ = encoder.encode(batch)
        scales = blocks.abs().amax(-1, keepdim=True)
        expected = blocks.sign() if kind == "sign" else blocks
        tolerance = 0 if kind == "sign" else (1e-2 if kind == "int8" else 1e-3)
        appended = rows[FIRST + torch.from_numpy(batch.indices)]
        actual = appended.sign() if kind == "sign" else appended
        assert (actual - expected).abs().le(tolerance * scales + 1e-9).all()


def test_appended_documents_are_found_with_their_text_and_metadata(facts, rest):
    before = read_manifest(facts)
    after = append_documents(facts, rest)
    assert (after.generation, after.rows, after.numbered) == (2, ALL, ALL)
    assert after.shards[: len(before.shards)] == before.shards
    assert [shard.generation for shard in after.shards] == [1, 1, 2]
    (answer,) = AttributionIndex.open(facts).attribute([query(top_k=ALL)])
    assert {row.id for row in answer.results} == {f"doc-{k}" for k in range(ALL)}
    assert answer.generation == 2
    (row,) = [row for row in answer.results if row.id == "doc-39"]
    assert (row.prompt, row.metadata) == (tiny.texts(ALL)[39], {"source": "wiki", "number": 39})
    (only,) = AttributionIndex.open(facts).attribute([query(filter={"number": 39})])
    assert [row.id for row in only.results] == ["doc-39"]


def test_an_append_changes_no_published_file(facts, rest):
    def stamps() -> dict[str, int]:
        manifest = read_manifest(facts)
        parts = (manifest, *manifest.shards, *manifest.profiles)
        return {entry.path: (facts / entry.path).stat().st_mtime_ns for part in parts for entry in part.files}

    before = stamps()
    append_documents(facts, rest)
    assert {path: stamp for path, stamp in stamps().items() if path in before} == before


def test_an_open_index_answers_from_the_old_generation(facts, rest):
    opened = AttributionIndex.open(facts)
    before = opened.attribute([query(top_k=ALL)])[0].results
    append_documents(facts, rest)
    assert opened.attribute([query(top_k=ALL)])[0].results == before


def test_a_fitted_profile_scores_appended_documents_too(facts, rest, sample):
    fit_profile(facts, "work", sample, mixing=0.5)
    append_documents(facts, rest)
    (answer,) = AttributionIndex.open(facts).attribute([query(top_k=ALL, profile="work")])
    assert len(answer.results) == ALL
    assert all(abs(row.score) <= 1 + 1e-3 for row in answer.results)


def test_documents_without_ids_get_the_next_numbers(sources, parts, tmp_path):
    changes = {"dataset": DatasetSpec(path=str(parts / "first.jsonl")), "columns": ColumnsSpec()}
    build_index(make_spec(sources, **changes), tmp_path / "facts")
    append_documents(tmp_path / "facts", AppendSpec(documents=({"text": "Person 3"}, {"text": "Person 4"})))
    take_down_document(tmp_path / "facts", "29")
    compact_index(tmp_path / "facts")
    append_documents(tmp_path / "facts", AppendSpec(documents=({"text": "Person 5"},)))
    (answer,) = AttributionIndex.open(tmp_path / "facts").attribute([query(top_k=ALL)])
    assert {row.id for row in answer.results} == {*map(str, range(29)), "30"}


def stop_in_the_middle(progress: Progress) -> None:
    if progress.stage == "gradients" and progress.done > 8:
        raise Cancelled("stopped by the test")


def test_a_stopped_append_leaves_the_index_as_it_was_and_resumes_to_the_same_bytes(facts, rest, tmp_path):
    whole = shutil.copytree(facts, tmp_path / "whole")
    append_documents(whole, rest, shard_rows=6)
    before = read_manifest(facts)
    with pytest.raises(Cancelled):
        append_documents(facts, rest, shard_rows=6, report=stop_in_the_middle)
    assert read_manifest(facts) == before
    modified = (facts / "shards" / "00002" / "gradients.bin").stat().st_mtime_ns
    after = append_documents(facts, rest, shard_rows=6)
    assert (facts / "shards" / "00002" / "gradients.bin").stat().st_mtime_ns == modified
    assert after.shards == read_manifest(whole).shards


def append_and_die(index: Path, spec: AppendSpec) -> None:
    def report(progress: Progress) -> None:
        if progress.stage == "search":
            os.kill(os.getpid(), signal.SIGKILL)

    append_documents(index, spec, report=report)


def test_a_killed_append_is_finished_by_the_next(facts, rest):
    process = forkserver_context().Process(target=append_and_die, args=(facts, rest))
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    assert read_manifest(facts).generation == 1
    assert append_documents(facts, rest).rows == ALL
    files = {str(path.relative_to(facts)) for path in facts.rglob("*") if path.is_file()}
    manifest = read_manifest(facts)
    parts = (manifest, *manifest.shards, *manifest.profiles)
    known = {entry.path for part in parts for entry in part.files}
    assert files - known == {
        "manifest.json",
        "takedowns.head.json",
        ".lock",
        ".takedowns.lock",
        ".checked.json",
    }


def test_a_finished_append_is_not_done_again_unless_its_key_is_another(sources, parts, tmp_path):
    changes = {"dataset": DatasetSpec(path=str(parts / "first.jsonl")), "columns": ColumnsSpec()}
    build_index(make_spec(sources, **changes), tmp_path / "facts")
    spec = AppendSpec(documents=({"text": "Person 3"},))
    first = append_documents(tmp_path / "facts", spec, key="job-1")
    assert append_documents(tmp_path / "facts", spec, key="job-1", report=stop_in_the_middle) == first
    assert append_documents(tmp_path / "facts", spec, key="job-2").rows == first.rows + 1


def test_ids_that_exist_are_refused_and_listed(facts, rest):
    append_documents(facts, rest)
    others = {"text": "a b", "source": "x", "number": 1}
    twice = AppendSpec(documents=({"id": "new"} | others, {"id": "doc-30"} | others))
    with pytest.raises(IdsExist, match="'doc-30'") as error:
        append_documents(facts, twice)
    assert error.value.ids == ("doc-30",)
    assert read_manifest(facts).rows == ALL


BAD = {
    "an id twice": (InvalidInput, "more than once", ("x", "x"), {}),
    "a document too long": (TooLong, "document 'long'", ("long",), {"text": "a long text " * 90}),
    "another model": (InvalidInput, "model: the index facts was built with", ("x",), {}),
    "other gradients": (InvalidInput, "gradients: the index", ("x",), {}),
    "other scoring": (InvalidInput, "scoring: the index", ("x",), {}),
}
STATED = {
    "another model": {"model": "gpt2"},
    "other gradients": {"gradients": GradientSpec(projection_dim=5)},
    "other scoring": {"scoring": ScoringSpec(normalize="block")},
}


@pytest.mark.parametrize("case", BAD)
def test_bad_appends_are_refused_and_change_nothing(facts, case):
    kind, says, ids, changes = BAD[case]
    documents = tuple(
        {"id": document_id, "text": "a b", "source": "x", "number": 1} | changes for document_id in ids
    )
    before = read_manifest(facts)
    with pytest.raises(kind, match=says):
        append_documents(facts, AppendSpec(documents=documents, **STATED.get(case, {})))
    assert read_manifest(facts) == before


def test_what_the_index_was_built_with_may_be_stated(facts, rest):
    spec = read_manifest(facts).spec
    stated = rest.model_copy(
        update={"model": spec.model, "gradients": spec.gradients, "columns": spec.columns}
    )
    assert append_documents(facts, stated).rows == ALL


def test_an_append_by_a_changed_model_is_refused(sources, parts, rest, tmp_path):
    tiny.save_model(tmp_path / "model")
    changes = {"model": str(tmp_path / "model"), "dataset": DatasetSpec(path=str(parts / "first.jsonl"))}
    build_index(make_spec(sources, **changes), tmp_path / "facts")
    tiny.save_model(tmp_path / "model", seed=1)
    with pytest.raises(IndexCorrupt, match="not the one"):
        append_documents(tmp_path / "facts", rest)


def test_nothing_is_appended_to_an_index_that_is_missing_or_being_written(facts, rest, tmp_path):
    with pytest.raises(IndexNotFound):
        append_documents(tmp_path / "nothing", rest)
    assert list(iter_published_indexes(tmp_path / "nothing")) == []
    with index_write_lock(facts), pytest.raises(IndexBusy):
        append_documents(facts, rest)


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("kind", ["inline", "json", "jsonl", "csv", "parquet", "directory", "splits"])
def test_metadata_that_no_new_document_has_is_null(facts, tmp_path, kind, streaming):
    rows = [{"id": f"new-{k}", "text": f"a text {k}", "number": k} for k in range(2)]
    if kind == "inline":
        spec = AppendSpec(documents=tuple(rows))
    else:
        path = save_dataset(Dataset.from_list(rows), tmp_path, kind)
        spec = AppendSpec(dataset=DatasetSpec(path=path, streaming=streaming))
    assert append_documents(facts, spec).rows == FIRST + 2
    (answer,) = AttributionIndex.open(facts).attribute([query(top_k=FIRST + 2)])
    metadata = {row.id: row.metadata for row in answer.results}
    assert metadata["new-1"] == {"source": None, "number": 1}
    assert metadata["doc-1"] == {"source": "wiki", "number": 1}


def test_an_append_still_needs_the_columns_that_are_not_metadata(facts):
    with pytest.raises(ColumnNotFound, match="has no column 'text'"):
        append_documents(facts, AppendSpec(documents=({"id": "new", "source": "x"},)))


def test_the_search_is_measured_again_once_the_index_has_grown_by_a_tenth(facts):
    def grown(first: int, count: int):
        rows = rows_of(0, count)
        documents = tuple(row | {"id": f"new-{first + k}"} for k, row in enumerate(rows))
        return append_documents(facts, AppendSpec(documents=documents))

    assert grown(0, 2).search.rows == FIRST
    assert grown(2, 1).search.rows == FIRST + 3


def test_a_streamed_append_adds_the_same_rows_and_leaves_nothing_of_the_stream(facts, parts, rest, tmp_path):
    plain = append_documents(shutil.copytree(facts, tmp_path / "plain"), rest)
    stream = AppendSpec(dataset=DatasetSpec(path=str(parts / "rest.jsonl"), streaming=True))
    with pytest.raises(Cancelled):
        append_documents(facts, stream, report=stop_in_the_middle)
    assert [file.name for path in facts.glob(".appending-*") for file in path.iterdir()] == [
        "documents.arrow"
    ]
    bad = write_lines(tmp_path / "bad.jsonl", rows_of(0, 1)[0], {"text": "a", "source": "b"})
    with pytest.raises(InvalidInput, match="row 1 of column 'id' is null or missing"):
        append_documents(facts, AppendSpec(dataset=DatasetSpec(path=str(bad))))
    assert len(list(facts.glob(".appending-*"))) == 1
    streamed = append_documents(facts, stream)
    assert [shard.files for shard in streamed.shards] == [shard.files for shard in plain.shards]
    assert list(facts.glob(".appending-*")) == []
