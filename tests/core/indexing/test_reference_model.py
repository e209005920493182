"""The margins of a reference model: computed once, stored with the pairs, and resumed."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bergson_core import AttributionIndex, append_documents, build_index
from bergson_core.errors import Cancelled, IndexCorrupt, InvalidInput, ModelNotFound
from bergson_core.indexing.estimation.trial_build import run_trial_build
from bergson_core.indexing.preference import reference_margins
from bergson_core.indexing.relocate import relocate_index
from bergson_core.models.forward_backward import compute_document_losses
from bergson_core.models.loading import load_model
from bergson_core.schemas.build import AppendSpec, BuildSpec
from bergson_core.schemas.results import Progress
from bergson_core.storage.document_lookup import find_document
from bergson_core.storage.layout import REFERENCE_FILE
from bergson_core.storage.manifest import read_manifest
from bergson_core.tokens.tokenization import tokenize
from tests import tiny
from tests.core.helpers import file_hashes, stop_after
from tests.core.indexing.test_preference_pairs import ROWS, assert_scores_are_of_autograd, pair_spec, row


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that differs from that of the index."""
    return tiny.save_model(tmp_path_factory.mktemp("reference") / "model", seed=7)


def with_reference(sources: Path, directory: Path, reference: Path, **changes: Any) -> BuildSpec:
    return pair_spec(sources, directory, reference_model=str(reference), **changes)


def margins_of(reference: Path, rows: list[dict]) -> list[float]:
    model = load_model(str(reference), dtype="float64")
    margins = []
    for values in rows:
        texts = tokenize(model.tokenizer, [values["prompt"]] * 2, [values["chosen"], values["rejected"]])
        chosen, rejected = compute_document_losses(model, texts)
        margins.append(rejected - chosen)
    return margins


def test_scores_and_margins_are_those_of_the_loss_with_the_reference(
    sources: Path, tmp_path: Path, reference: Path
) -> None:
    spec = with_reference(sources, tmp_path, reference, scoring={"preconditioner": False})
    manifest = build_index(spec, tmp_path / "facts")
    expected = margins_of(reference, ROWS)
    for number in (0, 7, 39):
        stored = find_document(tmp_path / "facts", f"p-{number}")["reference_margin"]
        assert stored == pytest.approx(expected[number], rel=1e-4)
    assert_scores_are_of_autograd(AttributionIndex.open(tmp_path / "facts"), ROWS, expected, sources)
    assert manifest.reference_sha256 == load_model(str(reference)).sha256
    assert not (tmp_path / "facts" / REFERENCE_FILE).exists()


def test_the_model_as_its_own_reference_leaves_every_pair_undecided(sources: Path, tmp_path: Path) -> None:
    build_index(with_reference(sources, tmp_path, sources / "model"), tmp_path / "facts")
    losses = [find_document(tmp_path / "facts", f"p-{number}")["loss"] for number in range(40)]
    np.testing.assert_allclose(losses, np.log(2), rtol=1e-4)


def test_queries_need_no_reference(sources: Path, tmp_path: Path, reference: Path) -> None:
    copy = shutil.copytree(reference, tmp_path / "reference")
    build_index(with_reference(sources, tmp_path, copy), tmp_path / "facts")
    shutil.rmtree(copy)
    answer = AttributionIndex.open(tmp_path / "facts").query(
        "Person 3 lives in",
        " city 1.",
        top_k=3,
        include=["tokens"],
        rescore=3,
        verify={"top": 1, "controls": 1},
    )
    assert len(answer.results or ()) == 3
    with pytest.raises(ModelNotFound):
        append_documents(tmp_path / "facts", AppendSpec(documents=(row(50),)))


def test_an_append_asks_the_same_reference(sources: Path, tmp_path: Path, reference: Path) -> None:
    copy = shutil.copytree(reference, tmp_path / "reference")
    build_index(with_reference(sources, tmp_path, copy), tmp_path / "facts")
    append_documents(tmp_path / "facts", AppendSpec(documents=(row(50),)))
    stored = find_document(tmp_path / "facts", "p-50")["reference_margin"]
    assert stored == pytest.approx(margins_of(reference, [row(50)])[0], rel=1e-4)
    shutil.rmtree(copy)
    tiny.save_model(copy, seed=8)
    with pytest.raises(IndexCorrupt, match="the reference model"):
        append_documents(tmp_path / "facts", AppendSpec(documents=(row(51),)))
    assert read_manifest(tmp_path / "facts").rows == 41


def test_a_build_that_was_stopped_asks_the_reference_once(
    sources: Path, tmp_path: Path, reference: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = with_reference(sources, tmp_path, reference)
    build_index(spec, tmp_path / "whole", shard_rows=8)
    with pytest.raises(Cancelled):
        build_index(spec, tmp_path / "resumed", shard_rows=8, report=stop_after(20))
    assert (tmp_path / "resumed" / REFERENCE_FILE).is_file()
    with monkeypatch.context() as patch:
        patch.setattr(reference_margins, "compute_margins", None)
        build_index(spec, tmp_path / "resumed", shard_rows=8)
    assert file_hashes(tmp_path / "resumed") == file_hashes(tmp_path / "whole")


@pytest.mark.parametrize("damage", ["a flipped bit", "a short file", "another reference"])
def test_margins_that_are_damaged_or_of_another_reference_are_computed_again(
    damage: str, sources: Path, tmp_path: Path, reference: Path
) -> None:
    copy = shutil.copytree(reference, tmp_path / "reference")
    spec, path = with_reference(sources, tmp_path, copy), tmp_path / "facts" / REFERENCE_FILE
    with pytest.raises(Cancelled):
        build_index(spec, tmp_path / "facts", shard_rows=8, report=stop_after(0))
    content = path.read_bytes()
    if damage == "a flipped bit":
        path.write_bytes(content[:-3] + bytes([content[-3] ^ 1]) + content[-2:])
    elif damage == "a short file":
        path.write_bytes(content[:20])
    else:
        shutil.rmtree(copy)
        tiny.save_model(copy, seed=9)
    build_index(spec, tmp_path / "facts", shard_rows=8)
    stored = [find_document(tmp_path / "facts", f"p-{number}")["reference_margin"] for number in range(40)]
    np.testing.assert_allclose(stored, margins_of(copy, ROWS), rtol=1e-3, atol=1e-4)


def test_progress_names_the_stage(sources: Path, tmp_path: Path, reference: Path) -> None:
    seen: list[Progress] = []
    build_index(with_reference(sources, tmp_path, reference), tmp_path / "facts", report=seen.append)
    stages = list(dict.fromkeys(progress.stage for progress in seen))
    assert stages.index("read") < stages.index("reference") < stages.index("statistics")
    assert max(progress.done for progress in seen if progress.stage == "reference") == 40


def test_an_estimate_asks_the_reference_too(sources: Path, tmp_path: Path, reference: Path) -> None:
    spec = with_reference(sources, tmp_path, reference)
    seen: list[str] = []
    estimate = run_trial_build(spec, tmp_path / "trial", lambda progress: seen.append(progress.stage), 40)
    assert estimate.documents == 40 and "reference" in seen


def test_a_reference_that_is_missing_or_takes_other_tokens_is_refused(
    sources: Path, tmp_path: Path, reference: Path
) -> None:
    with pytest.raises(ModelNotFound):
        build_index(with_reference(sources, tmp_path, tmp_path / "nowhere"), tmp_path / "facts")
    small = tiny.gpt_neox(vocabulary=40)
    small.save_pretrained(tmp_path / "small")
    tiny.tokenizer().save_pretrained(tmp_path / "small")
    with pytest.raises(InvalidInput, match="reference_model: document 'p-0'"):
        build_index(with_reference(sources, tmp_path, tmp_path / "small"), tmp_path / "other")


def test_a_reference_that_has_moved_is_relocated_and_another_model_is_refused(
    sources: Path, tmp_path: Path, reference: Path
) -> None:
    old, new = shutil.copytree(reference, tmp_path / "old"), tmp_path / "new"
    build_index(with_reference(sources, tmp_path, old), tmp_path / "facts")
    shutil.move(old, new)
    with pytest.raises(ModelNotFound):
        append_documents(tmp_path / "facts", AppendSpec(documents=(row(50),)))
    before = file_hashes(tmp_path / "facts")
    for wrong, error in ((sources / "model", IndexCorrupt), (tmp_path / "nowhere", ModelNotFound)):
        with pytest.raises(error, match=r"reference model|no model directory"):
            relocate_index(tmp_path / "facts", reference_model=wrong)
        assert file_hashes(tmp_path / "facts") == before
    manifest = relocate_index(tmp_path / "facts", reference_model=new)
    assert manifest.spec.reference_model == str(new)
    assert read_manifest(tmp_path / "facts") == manifest
    append_documents(tmp_path / "facts", AppendSpec(documents=(row(50),)))
    assert find_document(tmp_path / "facts", "p-50")["reference_margin"] is not None


def test_an_index_without_a_reference_takes_no_path_of_one(index_copy: Path, reference: Path) -> None:
    with pytest.raises(InvalidInput, match="built without a reference model"):
        relocate_index(index_copy, reference_model=reference)
