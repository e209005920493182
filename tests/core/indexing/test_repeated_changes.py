"""A change that was killed after it had published is made again, which removes what it did not come to remove."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset

from bergson_core import append_documents, build_index, compact_index, fit_profile, take_down_document
from bergson_core.indexing import output_directory, publish
from bergson_core.schemas.build import BuildSpec
from tests.core.helpers import add_again_spec, file_hashes


class Killed(BaseException):
    pass


def die(*_: object) -> None:
    raise Killed


def list_files(index: Path) -> set[str]:
    return {
        str(path.relative_to(index))
        for path in index.rglob("*")
        if path.name not in (".checked.json", "building.json")
    }


@pytest.mark.parametrize("name", ["build", "append", "compact", "fit"])
def test_a_change_that_was_killed_after_it_had_published_leaves_nothing_once_it_is_repeated(
    spec: BuildSpec, index: Path, sample: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
):
    changes: dict[str, Callable[[Path], Any]] = {
        "build": lambda root: build_index(spec, root, shard_rows=16),
        "append": lambda root: append_documents(root, add_again_spec()),
        "compact": compact_index,
        "fit": lambda root: fit_profile(root, "work", sample, mixing=0.5, key="job"),
    }
    killed, undisturbed = tmp_path / "killed", tmp_path / "undisturbed"
    for root in (killed, undisturbed):
        if name != "build":
            shutil.copytree(index, root)
            take_down_document(root, "doc-7")
    changes[name](undisturbed)
    with monkeypatch.context() as patch:
        patch.setattr(publish, "remove_unpublished_files", die)
        with pytest.raises(Killed):
            changes[name](killed)
    for temporary in (".manifest.json.0a1b.tmp", "..checked.json.0a1b.tmp"):
        (killed / temporary).touch()
    left = list_files(killed) - list_files(undisturbed)
    assert left
    changes[name](killed)
    assert list_files(killed) == list_files(undisturbed)


def test_a_build_that_was_killed_while_it_saved_the_statistics_is_resumed_to_the_same_files(
    spec: BuildSpec, index: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def write_a_part(path: Path, content: bytes) -> None:
        path.with_name(f".{path.name}.0a1b.tmp").write_bytes(content[:3])
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(output_directory, "write_durably", write_a_part)
        with pytest.raises(Killed):
            build_index(spec, tmp_path / "killed", shard_rows=16)
    build_index(spec, tmp_path / "killed", shard_rows=16)
    assert list_files(tmp_path / "killed") == list_files(index)
    assert file_hashes(tmp_path / "killed") == file_hashes(index)
