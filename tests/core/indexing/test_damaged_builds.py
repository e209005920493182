"""Files of an unfinished build or append that are damaged while it is stopped are made again, and never published."""

import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from bergson_core import append_documents, build_index, read_manifest
from bergson_core.errors import Cancelled, IndexCorrupt, IndexExists
from bergson_core.indexing import publish
from bergson_core.schemas.build import AppendSpec, BuildSpec, GradientSpec
from bergson_core.schemas.results import Progress
from bergson_core.storage.integrity import find_damaged_files
from tests.core.helpers import file_hashes, make_spec, stop_after, write_rows

ROWS = [
    {"id": f"doc-{k}", "text": f"Person {k} lives in city {k % 3}", "source": "x", "number": k}
    for k in range(12)
]
KINDS = {
    "adafactor": {},
    "kfac": {"gradients": GradientSpec(projection_dim=4, normalizer="kfac")},
    "streamed": {},
    "signs": {"gradients": GradientSpec(projection_dim=4, rows="sign")},
}


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: -(path.stat().st_size // 3 + 1)])


DAMAGES: Sequence[Callable[[Path], None]] = (flip, cut, Path.unlink)


def small_spec(sources: Path, directory: Path, kind: str) -> BuildSpec:
    dataset = write_rows(directory, *ROWS).model_copy(update={"streaming": kind == "streamed"})
    return make_spec(sources, dataset=dataset, **KINDS[kind])


def stop_in(stage: str) -> Callable[[Progress], None]:
    def report(progress: Progress) -> None:
        if progress.stage == stage:
            raise Cancelled("stopped by the test")

    return report


def files_of_shards(root: Path, *others: str) -> list[Path]:
    """Returns the files of the first shard that is not published, and `others`, as paths below `root`."""
    entry = min(root.glob("shards/*/shard.json"))
    files = [path.relative_to(root) for path in sorted(entry.parent.iterdir())]
    return [*files, *map(Path, others)]


def require_intact(root: Path) -> None:
    assert find_damaged_files(root, read_manifest(root).all_files().values(), reread=True) == []


@pytest.mark.parametrize("kind", KINDS)
def test_a_file_that_is_damaged_while_a_build_is_stopped_is_made_again(
    sources: Path, tmp_path: Path, kind: str
):
    spec = small_spec(sources, tmp_path, kind)
    manifest = build_index(spec, tmp_path / "undisturbed", shard_rows=4)
    stopped = tmp_path / "stopped"
    with pytest.raises(Cancelled):
        build_index(spec, stopped, shard_rows=4, report=stop_after(8))
    files = files_of_shards(stopped, *["documents.arrow"] * (kind == "streamed"), "statistics/done")
    assert {"gradients.bin", "rows.arrow", "shard.json"} <= {file.name for file in files}
    assert (Path("shards/00000/second_moment.safetensors") in files) == (kind != "signs")
    offset = list(KINDS).index(kind)
    for number, file in enumerate(files):
        copy = shutil.copytree(stopped, tmp_path / f"copy-{number}")
        DAMAGES[(number + offset) % 3](copy / file)
        resumed = build_index(spec, copy, shard_rows=4)
        assert file_hashes(copy) == file_hashes(tmp_path / "undisturbed"), file
        assert resumed.tokens == manifest.tokens
        require_intact(copy)


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_file_that_is_damaged_while_an_append_is_stopped_is_made_again(
    index_copy: Path, tmp_path: Path, damage: Callable[[Path], None]
):
    documents = write_rows(tmp_path, *({**row, "id": f"new-{k}"} for k, row in enumerate(ROWS[:4])))
    spec = AppendSpec(dataset=documents.model_copy(update={"streaming": True}))
    undisturbed = shutil.copytree(index_copy, tmp_path / "undisturbed")
    append_documents(undisturbed, spec, shard_rows=2)

    def report(progress: Progress) -> None:
        if progress.stage in ("search", "measure"):
            raise Cancelled("stopped by the test")

    with pytest.raises(Cancelled):
        append_documents(index_copy, spec, shard_rows=2, report=report)
    (directory,) = index_copy.glob(".appending-*")
    files = files_of_shards(index_copy, f"{directory.name}/documents.arrow")
    for number, file in enumerate(files):
        copy = shutil.copytree(index_copy, tmp_path / f"copy-{number}")
        damage(copy / file)
        append_documents(copy, spec, shard_rows=2)
        assert file_hashes(copy) == file_hashes(undisturbed), file
        require_intact(copy)


def test_a_damaged_stream_whose_source_has_changed_gives_the_index_of_the_changed_source(
    sources: Path, tmp_path: Path
):
    spec, path = small_spec(sources, tmp_path, "streamed"), tmp_path / "facts"
    with pytest.raises(Cancelled):
        build_index(spec, path, shard_rows=4, report=stop_after(4))
    flip(path / "documents.arrow")
    write_rows(tmp_path, *({**row, "text": f"{row['text']} now"} for row in ROWS))
    build_index(spec, path, shard_rows=4)
    build_index(spec, tmp_path / "undisturbed", shard_rows=4)
    assert file_hashes(path) == file_hashes(tmp_path / "undisturbed")


def test_a_file_that_is_damaged_in_the_run_that_resumes_a_build_is_not_published(
    sources: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    spec, path = small_spec(sources, tmp_path, "adafactor"), tmp_path / "facts"
    with pytest.raises(Cancelled):
        build_index(spec, path, shard_rows=4, report=stop_after(4))
    protect = publish.protect_takedowns

    def flip_first(root: Path):
        flip(root / "shards" / "00000" / "gradients.bin")
        return protect(root)

    monkeypatch.setattr(publish, "protect_takedowns", flip_first)
    with pytest.raises(IndexCorrupt, match=r"gradients\.bin was altered"):
        build_index(spec, path, shard_rows=4)
    monkeypatch.undo()
    build_index(spec, path, shard_rows=4)
    build_index(spec, tmp_path / "undisturbed", shard_rows=4)
    assert file_hashes(path) == file_hashes(tmp_path / "undisturbed")


@pytest.mark.parametrize(
    "change",
    [
        {"date": "2026-11-3z"},
        {"date": 20261130},
        {"date": ["2026-11-30"]},
        {"spec": "another", "settings": {}},
        {"settings": "x"},
        {"settings": [1]},
    ],
)
def test_a_stamp_of_a_build_that_cannot_be_used_is_refused_by_name(
    sources: Path, tmp_path: Path, change: dict[str, object]
):
    spec, path = small_spec(sources, tmp_path, "adafactor"), tmp_path / "facts"
    with pytest.raises(Cancelled):
        build_index(spec, path, report=stop_in("statistics"))
    stamp = path / "building.json"
    stamp.write_text(json.dumps(json.loads(stamp.read_text()) | change))
    with pytest.raises(IndexExists, match="unreadable"):
        build_index(spec, path)


@pytest.mark.parametrize("content", [b"", b"[]", b"null", b"{}", b"3", b'"x"', b"\xff"])
def test_a_stamp_that_is_no_stamp_is_refused_by_name(sources: Path, tmp_path: Path, content: bytes):
    (tmp_path / "facts").mkdir()
    (tmp_path / "facts" / "building.json").write_bytes(content)
    with pytest.raises(IndexExists, match="unreadable"):
        build_index(small_spec(sources, tmp_path, "adafactor"), tmp_path / "facts")


def test_a_flipped_bit_of_the_date_of_a_build_is_refused(sources: Path, tmp_path: Path):
    spec, path = small_spec(sources, tmp_path, "adafactor"), tmp_path / "facts"
    with pytest.raises(Cancelled):
        build_index(spec, path, report=stop_in("statistics"))
    stamp = path / "building.json"
    content = stamp.read_bytes()
    assert b'"date": "20' in content
    stamp.write_bytes(content.replace(b'"date": "20', b'"date": "30'))
    with pytest.raises(IndexExists, match="unreadable"):
        build_index(spec, path)
