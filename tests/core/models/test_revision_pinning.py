"""An index of a model from the hub keeps using the commit that it was built from."""

from functools import partial
from pathlib import Path

import pytest
from huggingface_hub import snapshot_download

from bergson_core import AttributionIndex, append_documents, build_index
from bergson_core.models import loading
from bergson_core.schemas.build import AppendSpec
from bergson_core.storage.manifest import read_manifest
from tests import tiny
from tests.core.helpers import make_spec, query

FIRST, SECOND = "1" * 40, "2" * 40


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The hub's cache of the repository org/tiny, whose branch is at the first of two commits."""
    monkeypatch.setattr(
        loading, "snapshot_download", partial(snapshot_download, cache_dir=tmp_path, local_files_only=True)
    )
    repository = tmp_path / "models--org--tiny"
    for seed, commit in enumerate((FIRST, SECOND)):
        tiny.save_model(repository / "snapshots" / commit, seed=seed)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(FIRST)
    return repository


def test_an_index_keeps_its_commit_when_the_branch_moves_on(repository: Path, sources: Path, tmp_path: Path):
    path = tmp_path / "facts"
    build_index(make_spec(sources, model="org/tiny"), path)
    assert read_manifest(path).model_revision == FIRST
    (repository / "refs" / "main").write_text(SECOND)
    (answer,) = AttributionIndex.open(path).attribute([query()])
    assert answer.results
    added = AppendSpec(
        documents=({"id": "new", "text": "Person 99 lives in city 3.", "source": "x", "number": 1},)
    )
    assert append_documents(path, added).generation == 2


def test_a_directory_of_the_same_name_does_not_take_the_place_of_a_hub_model(
    repository: Path, sources: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    build_index(make_spec(sources, model="org/tiny"), tmp_path / "facts")
    tiny.save_model(tmp_path / "elsewhere" / "org" / "tiny", seed=3)
    monkeypatch.chdir(tmp_path / "elsewhere")
    (answer,) = AttributionIndex.open(tmp_path / "facts").attribute([query()])
    assert answer.results


def test_a_model_of_a_directory_has_no_commit(index: Path):
    assert read_manifest(index).model_revision is None
