"""Many appends leave few shards, whose rows, answers and takedowns are those of the shards before."""

import shutil
from pathlib import Path

import numpy as np
import pytest

from bergson_core import AttributionIndex, append_documents, compact_index, fit_profile, take_down_document
from bergson_core.indexing import merge_shards, publish
from bergson_core.schemas.build import AppendSpec
from bergson_core.schemas.results import Answer
from bergson_core.storage.damaged_shards import find_damaged_shards
from bergson_core.storage.manifest import Manifest, read_manifest
from tests.core.helpers import query

MERGED = 3


def spec_of(number: int, text: str = "Person 7 moved away") -> AppendSpec:
    return AppendSpec(documents=({"id": f"new-{number}", "text": text, "source": "x", "number": number},))


def append(index: Path, *numbers: int) -> Manifest:
    """Appends documents one by one, and returns the last manifest."""
    manifests = [append_documents(index, spec_of(number, f"Person {number} moved")) for number in numbers]
    return manifests[-1]


def results(index: Path, profile: str = "default") -> list[dict]:
    (answer,) = AttributionIndex.open(index).attribute([query(top_k=60, profile=profile)])
    assert isinstance(answer, Answer)
    rows = [(row.id, row.prompt, row.score, row.loss) for row in answer.results or ()]
    return [dict(zip(("id", "prompt", "score", "loss"), row, strict=True)) for row in rows]


def shown(index: Path) -> dict[str, str]:
    """Returns the text of each document that appends have added and a query finds, by id."""
    rows = results(index)
    return {row["id"]: row["prompt"] for row in rows if row["id"].startswith("new-")}


def stored_rows(index: Path) -> np.ndarray:
    return np.concatenate([shard.blocks for shard in AttributionIndex.open(index).shards])


@pytest.fixture(scope="module")
def three_appends(index: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An index with three shards of the build, and three of appends that were not merged."""
    root = shutil.copytree(index, tmp_path_factory.mktemp("indexes") / "facts")
    append(root, 0, 1, 2)
    return root


@pytest.fixture
def grown(three_appends: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of that index which may be changed, and whose next append merges."""
    monkeypatch.setattr(merge_shards, "MERGED_SHARDS", MERGED)
    return shutil.copytree(three_appends, tmp_path / "facts")


def test_an_append_merges_the_small_shards_of_appends_and_changes_no_row(grown, three_appends, sample):
    fit_profile(grown, "work", sample, mixing=0.5)
    unmerged = shutil.copytree(grown, grown.parent / "unmerged")
    before = read_manifest(grown)
    merged = append(grown, 3)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(merge_shards, "MERGED_SHARDS", 100)
        append(unmerged, 3)
    assert [shard.rows for shard in merged.shards] == [16, 16, 8, 3, 1]
    assert [shard.first_row for shard in merged.shards] == [0, 16, 32, 40, 43]
    assert merged.shards[:3] == before.shards[:3]
    assert merged.shards[3].tokens == sum(shard.tokens for shard in before.shards[3:])
    assert (merged.generation, merged.rows) == (before.generation + 1, 44)
    assert np.array_equal(stored_rows(grown), stored_rows(unmerged))
    for profile in ("default", "work"):
        for row, row_unmerged in zip(results(grown, profile), results(unmerged, profile), strict=True):
            assert row.pop("id") == row_unmerged.pop("id")
            assert row.pop("prompt") == row_unmerged.pop("prompt")
            assert row == pytest.approx(row_unmerged, rel=1e-5, abs=1e-6)
    assert find_damaged_shards(grown, merged, merged.shards) == {}
    on_disk = {path.name for path in (grown / "shards").iterdir()}
    assert on_disk == {shard.name for shard in merged.shards}


def test_few_small_shards_and_those_of_a_build_are_not_merged(three_appends, tmp_path):
    root = shutil.copytree(three_appends, tmp_path / "facts")
    names = [shard.name for shard in read_manifest(root).shards]
    assert [shard.name for shard in append(root, 3).shards[: len(names)]] == names
    assert merge_shards.MERGED_SHARDS > MERGED


def test_an_append_whose_shard_was_merged_is_not_made_again(grown):
    append(grown, 3)
    before = read_manifest(grown)
    for number in range(4):
        assert append(grown, number) == before


def test_a_shard_with_a_document_that_was_taken_down_is_left_to_a_compaction(grown):
    append(grown, 3, 4)
    take_down_document(grown, "new-3")
    append_documents(grown, spec_of(3, "Person 3 came back"))
    append(grown, 5, 6, 7)
    (hidden,) = [shard for shard in read_manifest(grown).shards if shard.first_row == 43]
    assert hidden.rows == 1
    before = shown(grown)
    assert before["new-3"] == "Person 3 came back"
    assert len(before) == 8
    compact_index(grown)
    assert shown(grown) == before


def test_a_takedown_while_shards_are_merged_is_not_lost(grown, monkeypatch):
    write_manifest = publish.write_manifest

    def take_down_first(root: Path, manifest: Manifest) -> None:
        take_down_document(grown, "new-1")
        write_manifest(root, manifest)

    with monkeypatch.context() as patch:
        patch.setattr(publish, "write_manifest", take_down_first)
        append(grown, 3)
    assert set(shown(grown)) == {"new-0", "new-2", "new-3"}
    take_down_document(grown, "new-2")
    assert set(shown(grown)) == {"new-0", "new-3"}


def test_an_append_that_was_stopped_after_it_had_merged_is_made_again(grown):
    def refuse() -> None:
        if any(path.name > "00006" for path in (grown / "shards").iterdir()):
            raise InterruptedError

    before = read_manifest(grown)
    with pytest.raises(InterruptedError):
        append_documents(grown, spec_of(3, "Person 3 moved"), confirm=refuse)
    assert read_manifest(grown) == before
    assert [shard.rows for shard in append(grown, 3).shards] == [16, 16, 8, 3, 1]
