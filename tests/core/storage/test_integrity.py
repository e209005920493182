"""Each file is read once to be checked, a damaged shard is named and left out, and a full disk loses nothing."""

import os
import resource
from pathlib import Path
from typing import Any

import pytest

from bergson_core import AppendSpec, AttributionIndex, append_documents, build_index
from bergson_core.errors import BergsonError, DiskFull, IndexCorrupt, IndexNotFound
from bergson_core.storage import integrity
from bergson_core.storage.manifest import read_manifest
from tests.core.helpers import query
from tests.processes import forkserver_context


@pytest.fixture
def read(monkeypatch) -> list[str]:
    """Names of the files that were read to be checked."""
    names, original = [], integrity.file_sha256

    def sha256(path: Path) -> str:
        names.append(path.name)
        return original(path)

    monkeypatch.setattr(integrity, "file_sha256", sha256)
    return names


def alter(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def test_opening_an_index_reads_no_file_that_was_checked_before(spec, tmp_path, read):
    build_index(spec, tmp_path / "facts", shard_rows=16)
    read.clear()
    AttributionIndex.open(tmp_path / "facts")
    assert read == []


def test_all_files_of_a_copied_index_are_read_once(index_copy, read):
    manifest = read_manifest(index_copy)
    AttributionIndex.open(index_copy)
    assert len(read) == len(manifest.all_files())
    read.clear()
    AttributionIndex.open(index_copy)
    assert read == []
    (index_copy / "shards" / "00001" / "gradients.bin").touch()
    AttributionIndex.open(index_copy)
    assert read == ["gradients.bin"]


def test_files_are_read_each_time_if_the_check_cannot_be_noted(index_copy, read, monkeypatch):
    def refuse(path: Path, content: bytes) -> None:
        raise PermissionError(f"{path} is read-only")

    monkeypatch.setattr(integrity, "write_atomically", refuse)
    AttributionIndex.open(index_copy)
    first = list(read)
    AttributionIndex.open(index_copy)
    assert read == 2 * first


def test_all_files_are_read_if_the_notes_cannot_be_read(index_copy, read):
    (index_copy / ".checked.json").write_text("{")
    AttributionIndex.open(index_copy)
    assert len(read) == len(read_manifest(index_copy).all_files())


def test_a_reread_finds_a_change_that_left_size_and_time_alone(index_copy):
    AttributionIndex.open(index_copy)
    entries = list(read_manifest(index_copy).all_files().values())
    assert integrity.find_damaged_files(index_copy, entries, reread=True) == []
    path = index_copy / "shards" / "00001" / "gradients.bin"
    times = path.stat().st_atime_ns, path.stat().st_mtime_ns
    alter(path)
    os.utime(path, ns=times)  # as a failing disk would
    assert integrity.find_damaged_files(index_copy, entries) == []
    ((entry, damage),) = integrity.find_damaged_files(index_copy, entries, reread=True)
    assert entry.path == "shards/00001/gradients.bin"
    assert "altered" in damage


PARTS = ["shards/00001/gradients.bin", "shards/00001/rows.arrow", "search/float16/00001.faiss"]
PARTS += ["profiles/default/00001.lengths.bin"]


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize(
    "damage", [alter, Path.unlink, lambda path: path.write_bytes(path.read_bytes()[:-2])]
)
def test_a_damaged_shard_is_named_and_partial_queries_are_answered_from_the_others(index_copy, part, damage):
    damage(index_copy / part)
    with pytest.raises(IndexCorrupt, match=f"shard 00001 of the index facts .*{part}"):
        AttributionIndex.open(index_copy)
    opened = AttributionIndex.open(index_copy, partial=True)
    refused, answered = opened.attribute([query(top_k=40), query(top_k=40, partial=True)])
    assert isinstance(refused, IndexCorrupt)
    assert "00001" in str(refused)
    assert answered.partial
    assert {row.id for row in answered.results} == {f"doc-{k}" for k in (*range(16), *range(32, 40))}


def test_the_answer_of_an_intact_index_is_never_partial(index_copy):
    (answer,) = AttributionIndex.open(index_copy, partial=True).attribute([query(partial=True)])
    assert not answer.partial


@pytest.mark.parametrize(
    "part", ["statistics/normalizers.safetensors", "profiles/default/preconditioner.safetensors"]
)
def test_an_index_is_refused_if_a_file_that_all_shards_share_is_damaged(index_copy, part):
    alter(index_copy / part)
    with pytest.raises(IndexCorrupt, match=part):
        AttributionIndex.open(index_copy, partial=True)


def test_an_index_without_an_intact_shard_is_refused(index_copy):
    for path in index_copy.glob("shards/*/gradients.bin"):
        alter(path)
    with pytest.raises(IndexCorrupt, match="shards 00000, 00001, 00002"):
        AttributionIndex.open(index_copy, partial=True)


def call_with_little_room(max_file_bytes: int, call: Any, arguments: tuple[Any, ...], outcome: Any) -> None:
    """Calls a function while no file may be larger than that, and puts code and text of its error into a queue."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (max_file_bytes, resource.RLIM_INFINITY))
    try:
        call(*arguments)
        outcome.put(("", ""))
    except BergsonError as error:
        outcome.put((error.code, str(error)))


def run_with_little_room(max_file_bytes: int, call: Any, *arguments: Any) -> tuple[str, str]:
    """Returns code and text of the error that a function raises if no file may be larger than `max_file_bytes`."""
    context = forkserver_context()
    outcome = context.Queue()
    process = context.Process(target=call_with_little_room, args=(max_file_bytes, call, arguments, outcome))
    process.start()
    error = outcome.get(timeout=120)
    process.join()
    return error


def test_a_build_on_a_full_disk_fails_with_that_reason_at_every_stage(spec, index, tmp_path):
    path, stages = tmp_path / "facts", set()
    for room in (1_000, 3_500, 9_000, 11_000):
        code, message = run_with_little_room(room, build_index, spec, path)
        assert code == DiskFull.code
        assert "larger than is allowed" in message
        assert "make room" in message
        with pytest.raises(IndexNotFound):
            read_manifest(path)
        stages.add(tuple(sorted(file.name for file in path.iterdir() if not file.name.startswith("."))))
    assert len(stages) > 2
    assert list(path.rglob("*.tmp")) == []
    build_index(spec, path)
    assert len(AttributionIndex.open(path).attribute([query()])[0].results) == 10


def test_an_append_on_a_full_disk_fails_and_the_old_generation_is_served(index_copy):
    text = {"text": "Person 7 moved away", "source": "x" * 500, "number": 7}
    spec = AppendSpec(documents=tuple({"id": f"new-{k}"} | text for k in range(20)))
    before = read_manifest(index_copy)
    code, _ = run_with_little_room(8_000, append_documents, index_copy, spec)
    assert code == DiskFull.code
    assert read_manifest(index_copy) == before
    assert AttributionIndex.open(index_copy).attribute([query()])[0].generation == 1
    assert append_documents(index_copy, spec).rows == before.rows + 20
