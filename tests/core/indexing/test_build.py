"""An index is published whole or not at all; a build resumes, and refuses bad input before it computes anything."""

import json
import os
import signal
from pathlib import Path

import pytest
import torch
from filelock import FileLock
from safetensors.torch import load_file, save_file

from bergson_core import AttributionIndex, AttributionQuery, GradientProcessor, build_index
from bergson_core.errors import (
    BergsonError,
    Cancelled,
    IndexBusy,
    IndexCorrupt,
    IndexExists,
    IndexNotFound,
    InvalidInput,
    ModelNotFound,
)
from bergson_core.indexing.shard_builder import rows_per_shard
from bergson_core.schemas.build import BuildSpec, GradientSpec
from bergson_core.schemas.results import Progress
from bergson_core.schemas.source import ColumnsSpec, DatasetSpec
from bergson_core.shards.row_encoder import RowEncoder
from bergson_core.shards.shard import RowShape
from bergson_core.storage.manifest import MANIFEST_FILE, iter_published_indexes, read_manifest
from tests import tiny
from tests.core.helpers import INVALID_BUILDS, file_hashes, make_spec, stop_after, write_rows
from tests.processes import forkserver_context


def test_the_manifest_describes_the_whole_index(index, spec):
    manifest = read_manifest(index)
    assert (manifest.rows, len(manifest.shards), manifest.dimensions) == (40, 3, 8 * 16)
    assert manifest.spec == spec
    assert manifest.coverage_percent > 20
    for path in file_hashes(index):
        assert (index / path).is_file()
    on_disk = {str(path.relative_to(index)) for path in index.rglob("*") if path.is_file()}
    unlisted = {
        MANIFEST_FILE,
        "takedowns.head.json",
        ".lock",
        ".takedowns.lock",
        ".checked.json",
        "statistics/done",
    }
    assert on_disk - file_hashes(index).keys() <= unlisted


@pytest.mark.parametrize(("kind", "width"), [("float16", 256), ("sign", 1024), ("sign", 4096)])
@pytest.mark.parametrize("total", [1, 10**5, 10**7, 10**8])
def test_an_index_has_few_shards_and_none_that_does_not_fit_into_memory(kind, width, total):
    shape = RowShape(kind, 48, width)
    rows = rows_per_shard(shape, total)
    size, shards = rows * shape.row_bytes, -(-total // rows)
    assert size <= 2**26 or (shards <= 1000 and size <= 2**31) or size > 2**31 - shape.row_bytes
    assert shards <= max(1000, total * shape.row_bytes / 2**31 + 1)


def test_a_stopped_build_publishes_nothing_and_resumes_to_the_same_bytes(spec, index, tmp_path):
    path = tmp_path / "facts"
    with pytest.raises(Cancelled):
        build_index(spec, path, shard_rows=16, report=stop_after(16))
    with pytest.raises(IndexNotFound):
        read_manifest(path)
    assert list(iter_published_indexes(tmp_path)) == []
    modified = (path / "shards" / "00000" / "gradients.bin").stat().st_mtime_ns
    build_index(spec, path, shard_rows=16)
    assert (path / "shards" / "00000" / "gradients.bin").stat().st_mtime_ns == modified
    assert file_hashes(path) == file_hashes(index)


def build_and_die(spec: BuildSpec, path: Path) -> None:
    def report(progress: Progress) -> None:
        if progress.stage == "gradients" and progress.done > 20:
            os.kill(os.getpid(), signal.SIGKILL)

    build_index(spec, path, shard_rows=16, report=report)


def test_a_killed_build_is_finished_by_the_next_process_with_the_same_rows(spec, index, tmp_path):
    path = tmp_path / "facts"
    process = forkserver_context().Process(target=build_and_die, args=(spec, path))
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    assert not (path / MANIFEST_FILE).exists()
    assert (path / "shards" / "00000").is_dir()
    build_index(spec, path, shard_rows=16)
    assert file_hashes(path) == file_hashes(index)


def test_a_finished_build_is_returned_at_once(spec, index):
    assert build_index(spec, index, report=stop_after(0)) == read_manifest(index)


def test_another_spec_for_the_same_directory_is_refused(sources, index):
    with pytest.raises(IndexExists, match="another"):
        build_index(make_spec(sources, gradients=GradientSpec(projection_dim=5)), index)


def test_a_directory_with_other_files_is_refused(spec, tmp_path):
    (tmp_path / "thesis.tex").write_text("mine")
    with pytest.raises(IndexExists, match="not empty"):
        build_index(spec, tmp_path)
    assert (tmp_path / "thesis.tex").read_text() == "mine"


def test_changed_documents_are_not_mixed_with_old_shards(sources, tmp_path):
    documents = tmp_path / "documents.jsonl"
    lines = (sources / "documents.jsonl").read_text().splitlines(keepends=True)
    documents.write_text("".join(lines))
    spec = make_spec(sources, dataset=DatasetSpec(path=str(documents)))
    with pytest.raises(Cancelled):
        build_index(spec, tmp_path / "facts", shard_rows=16, report=stop_after(16))
    first = (tmp_path / "facts" / "shards" / "00000" / "gradients.bin").read_bytes()
    documents.write_text("".join(reversed(lines)))
    build_index(spec, tmp_path / "facts", shard_rows=16)
    assert (tmp_path / "facts" / "shards" / "00000" / "gradients.bin").read_bytes() != first


def write_moments(path: Path, seed: int) -> Path:
    generator = torch.Generator().manual_seed(seed)
    moments = {
        name: torch.rand(weight.shape, generator=generator)
        for name, weight in tiny.model().named_parameters()
    }
    save_file(moments, path)
    return path


def test_moments_of_an_optimizer_take_the_place_of_those_of_the_sample(sources, tmp_path):
    state = write_moments(tmp_path / "moments.safetensors", seed=0)
    settings = GradientSpec(projection_dim=4, normalizer="adam", optimizer_state=str(state))
    build_index(make_spec(sources, gradients=settings), tmp_path / "facts")
    name = "gpt_neox.layers.0.attention.dense"
    (given,) = GradientProcessor.load(tmp_path / "facts" / "statistics").normalizers[name].tensors().values()
    torch.testing.assert_close(given, load_file(state)[f"{name}.weight"])


def test_a_changed_optimizer_checkpoint_is_not_mixed_with_old_shards(sources, tmp_path):
    state = write_moments(tmp_path / "moments.safetensors", seed=0)
    settings = GradientSpec(projection_dim=4, normalizer="adam", optimizer_state=str(state))
    spec, path = make_spec(sources, gradients=settings), tmp_path / "facts"
    with pytest.raises(Cancelled):
        build_index(spec, path, shard_rows=16, report=stop_after(16))
    first = (path / "shards" / "00000" / "gradients.bin").read_bytes()
    write_moments(state, seed=1)
    build_index(spec, path, shard_rows=16)
    assert (path / "shards" / "00000" / "gradients.bin").read_bytes() != first


def test_a_build_takes_chats_and_weights_from_columns(sources, tmp_path):
    tokenizer = tiny.tokenizer(tiny.texts(20))
    tokenizer.chat_template = (
        "{% for m in messages %}{% if m.role == 'assistant' %}{% generation %}{{ m.content }}{% endgeneration %}"
        "{% else %}{{ m.content }}{% endif %}{% endfor %}"
    )
    tiny.save_model(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    question, reply = (
        {"role": "user", "content": "Person 3"},
        {"role": "assistant", "content": " lives in city 1."},
    )
    rows = [{"chat": [question, reply], "reward": reward} for reward in (1.0, -1.0, 0.0)]
    spec = make_spec(
        sources,
        model=str(tmp_path / "model"),
        dataset=write_rows(tmp_path, *rows),
        columns=ColumnsSpec(messages="chat", weight="reward"),
        scoring={"preconditioner": False},
    )
    build_index(spec, tmp_path / "facts")
    query = AttributionQuery(index="facts", prompt="Person 3", completion=" lives in city 1.")
    (answer,) = AttributionIndex.open(tmp_path / "facts").attribute([query])
    assert [(row.id, round(row.score, 3)) for row in answer.results] == [("0", 1.0), ("2", 0.0), ("1", -1.0)]
    assert json.loads(answer.results[0].prompt) == [question, reply]
    assert answer.results[0].loss == pytest.approx(answer.query.loss, rel=1e-5)


def test_a_batch_that_does_not_fit_into_memory_is_an_error_and_finished_shards_stay(
    spec, index, tmp_path, monkeypatch
):
    original, calls = RowEncoder.encode, []

    def blocks(*arguments):
        calls.append(1)
        if len(calls) > 1:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return original(*arguments)

    monkeypatch.setattr(RowEncoder, "encode", blocks)
    with pytest.raises(InvalidInput, match=r"does not fit.*bfloat16.*2\.00 GiB"):
        build_index(spec, tmp_path / "facts", shard_rows=16)
    monkeypatch.undo()
    build_index(spec, tmp_path / "facts", shard_rows=16)
    assert file_hashes(tmp_path / "facts") == file_hashes(index)


def test_a_document_whose_gradient_is_not_finite_is_named_and_skipped_and_spoils_no_other(
    sources, tmp_path, caplog
):
    model, tokenizer = tiny.model(dtype=torch.float32), tiny.tokenizer(tiny.texts(20))
    (broken,) = tokenizer("~")["input_ids"]
    with torch.no_grad():
        model.get_input_embeddings().weight[broken] = torch.nan
    model.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    rows = [{"id": f"doc-{k}", "text": text} for k, text in enumerate([*tiny.texts(20), "a ~ here"])]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    changes = {"model": str(tmp_path / "model"), "columns": ColumnsSpec(id="id")}
    spec = make_spec(sources, dataset=DatasetSpec(path=str(tmp_path / "rows.jsonl")), **changes)
    manifest = build_index(spec, tmp_path / "facts")
    assert manifest.skipped == 1
    assert "['doc-20']" in caplog.text
    query = AttributionQuery(index="facts", prompt="Person 3 lives", completion=" in city 1.", top_k=21)
    (answer,) = AttributionIndex.open(tmp_path / "facts").attribute([query])
    scores = {row.id: (row.score, row.loss) for row in answer.results}
    assert scores.pop("doc-20") == (0, None)
    assert all(score and loss for score, loss in scores.values())


def test_two_builds_in_one_directory_exclude_each_other(spec, tmp_path):
    path = tmp_path / "facts"
    path.mkdir()
    with FileLock(path / ".lock"), pytest.raises(IndexBusy):
        build_index(spec, path)


@pytest.mark.parametrize("case", INVALID_BUILDS)
def test_bad_input_is_refused_and_leaves_no_directory(case, sources, tmp_path):
    kind, says, changes = INVALID_BUILDS[case]
    with pytest.raises(kind, match=says):
        build_index(make_spec(sources, **changes(tmp_path)), tmp_path / "index")
    assert not (tmp_path / "index").exists()


def test_pickled_weights_are_never_loaded(sources, tmp_path):
    model = tmp_path / "model"
    model.mkdir()
    for path in (sources / "model").glob("*.json"):
        (model / path.name).write_bytes(path.read_bytes())
    (model / "pytorch_model.bin").write_bytes(b"\x80\x04.")
    with pytest.raises(ModelNotFound, match="safetensors"):
        build_index(make_spec(sources, model=str(model)), tmp_path / "index")


def test_a_manifest_of_another_version_is_refused(tmp_path):
    (tmp_path / MANIFEST_FILE).write_text('{"format_version": 99}')
    with pytest.raises(IndexCorrupt, match="version 99"):
        read_manifest(tmp_path)


def test_every_error_is_restored_from_its_code():
    from bergson_core.errors import _with_subclasses, from_code

    for kind in _with_subclasses(BergsonError):
        assert type(from_code(kind.code, "why")) is kind


def test_each_stage_is_named_before_any_of_its_work_is_done(spec, tmp_path):
    reports: list[Progress] = []
    build_index(spec, tmp_path / "facts", report=reports.append)
    first: dict[str, Progress] = {}
    for progress in reports:
        first.setdefault(progress.stage, progress)
    stages = ["load", "read", "statistics", "gradients", "measure", "preconditioner", "search", "done"]
    assert list(first) == stages
    assert all(progress.done == 0 for stage, progress in first.items() if stage != "done")
