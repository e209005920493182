"""An index over several checkpoints is built, resumed, extended, compacted and opened as any other."""

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from bergson_core import (
    AttributionIndex,
    append_documents,
    build_index,
    compact_index,
    fit_profile,
    read_manifest,
    relocate_index,
    take_down_document,
)
from bergson_core.errors import Cancelled, IndexCorrupt, InvalidInput, ModelNotFound
from bergson_core.gradients.checkpoints.processors import checkpoint_seed
from bergson_core.indexing.estimation.trial_build import run_trial_build
from bergson_core.schemas.build import AppendSpec, BuildSpec, GradientSpec
from tests import tiny
from tests.core.helpers import copy_weights, file_hashes, make_spec, stop_after

ASKED = {"prompt": "Person 3 lives in", "completion": " city 1."}
GRADIENTS = {
    "adafactor": GradientSpec(projection_dim=4),
    "adam": GradientSpec(projection_dim=4, normalizer="adam", rows="int8"),
    "kfac": GradientSpec(projection_dim=4, normalizer="kfac"),
    "signs": GradientSpec(projection_dim=4, rows="sign"),
    "sampled": GradientSpec(projection_dim=4, fit_labels="sampled", include_bias=True),
}


@pytest.mark.parametrize("name", GRADIENTS)
def test_the_part_of_a_checkpoint_is_the_row_of_an_index_of_it_alone(
    name: str, sources: Path, run: list[str], tmp_path: Path
) -> None:
    settings = GRADIENTS[name]
    joined = make_spec(sources, model=run[-1], models=run, gradients=settings)
    build_index(joined, tmp_path / "joined")
    (shard,) = AttributionIndex.open(tmp_path / "joined").shards
    parts = shard.rows(slice(None)).unflatten(1, (3, -1))
    for number, model in enumerate(run):
        own = settings.model_copy(update={"seed": checkpoint_seed(0, number)})
        build_index(make_spec(sources, model=model, gradients=own), tmp_path / model[-1])
        (own_shard,) = AttributionIndex.open(tmp_path / model[-1]).shards
        rows = own_shard.rows(slice(None))
        scale = 3**-0.5 if settings.rows == "sign" else 1  # rows of signs have unit length as a whole
        torch.testing.assert_close(parts[:, number], scale * rows)


def test_a_build_that_was_stopped_goes_on_and_gives_the_same_bytes(
    checkpoint_spec: BuildSpec, checkpoint_index: Path, tmp_path: Path
) -> None:
    with pytest.raises(Cancelled):
        build_index(checkpoint_spec, tmp_path / "index", shard_rows=16, report=stop_after(16))
    build_index(checkpoint_spec, tmp_path / "index", shard_rows=16)
    assert file_hashes(tmp_path / "index") == file_hashes(checkpoint_index)


def test_documents_are_appended_taken_down_and_compacted(checkpoint_spec: BuildSpec, tmp_path: Path) -> None:
    root = tmp_path / "index"
    build_index(checkpoint_spec, root, shard_rows=16)
    texts = tiny.texts(40)
    number = next(k for k, text in enumerate(texts) if texts.count(text) == 1)
    before = {row.id: row.score for row in AttributionIndex.open(root).query(top_k=40, **ASKED).results or ()}
    take_down_document(root, f"doc-{number}")
    compact_index(root)
    again = {"id": "again", "text": texts[number], "source": "web", "number": number}
    append_documents(root, AppendSpec(documents=(again,), model=checkpoint_spec.model))
    after = {row.id: row.score for row in AttributionIndex.open(root).query(top_k=40, **ASKED).results or ()}
    assert after.pop("again") == pytest.approx(before.pop(f"doc-{number}"), rel=1e-3)
    assert after == pytest.approx(before, rel=1e-6)


def test_scores_are_split_by_module_and_token_of_all_checkpoints(checkpoint_index: Path) -> None:
    index = AttributionIndex.open(checkpoint_index)
    answer = index.query(**ASKED, direction="both", include=["modules", "tokens"], top_k=4)
    for row in (*(answer.results or ()), *(answer.opponents or ())):
        assert {name.split(".")[0] for name in row.modules} == {f"checkpoint-{n}" for n in range(3)}
        assert sum(row.modules.values()) == pytest.approx(row.score, abs=1e-5)
        assert sum(token.influence for token in row.tokens) == pytest.approx(row.score, abs=1e-5)


def test_results_are_verified_by_the_last_checkpoint(checkpoint_index: Path, run: list[str]) -> None:
    opened = AttributionIndex.open(checkpoint_index)
    weights = copy_weights(opened.model.model)
    answer = opened.query("Person 3 lives in", verify={"top": 2, "controls": 1}, top_k=3)
    assert answer.verification is not None
    assert all(torch.equal(weights[n], t) for n, t in copy_weights(opened.model.model).items())
    alone = AutoModelForCausalLM.from_pretrained(run[-1])
    assert all(torch.equal(weights[name], weight) for name, weight in alone.named_parameters())


def test_rescoring_is_refused(checkpoint_index: Path) -> None:
    with pytest.raises(InvalidInput, match="several checkpoints"):
        AttributionIndex.open(checkpoint_index).query(**ASKED, rescore=3)


def test_a_profile_is_fitted_over_all_checkpoints(checkpoint_spec: BuildSpec, tmp_path: Path, sample) -> None:
    build_index(checkpoint_spec, tmp_path / "index")
    fit_profile(tmp_path / "index", "work", sample, mixing=0.5)
    answer = AttributionIndex.open(tmp_path / "index").query(**ASKED, profile="work", top_k=3)
    assert len(answer.results or ()) == 3


def test_an_estimate_counts_the_rows_of_all_checkpoints(
    checkpoint_spec: BuildSpec, index: Path, tmp_path: Path
) -> None:
    one = read_manifest(index)
    all_three = run_trial_build(checkpoint_spec, tmp_path / "trial", lambda progress: None, sample_size=60)
    assert all_three.dimensions == 3 * one.dimensions
    assert all_three.coverage_percent == one.coverage_percent


def test_a_checkpoint_that_has_changed_since_is_found(sources: Path, run: list[str], tmp_path: Path) -> None:
    moved = [str(tiny.save_model(tmp_path / f"step-{seed}", seed)) for seed in (3, 4)]
    build_index(make_spec(sources, model=moved[-1], models=moved), tmp_path / "index")
    tiny.save_model(tmp_path / "step-3", seed=9)
    with pytest.raises(IndexCorrupt, match=r"checkpoint-0\.model\.safetensors has changed"):
        AttributionIndex.open(tmp_path / "index")


def test_checkpoints_that_were_moved_are_recorded_where_they_are(sources: Path, tmp_path: Path) -> None:
    before = [str(tiny.save_model(tmp_path / f"step-{seed}", seed)) for seed in (3, 4)]
    root = tmp_path / "index"
    build_index(make_spec(sources, model=before[-1], models=before), root)
    after = [str(tmp_path / f"moved-{seed}") for seed in (3, 4)]
    for old, new in zip(before, after, strict=True):
        Path(old).rename(new)
    with pytest.raises(ModelNotFound, match=r"step-3.*relocate index --models"):
        AttributionIndex.open(root)
    for wrong in ({"model": after[-1]}, {"models": after[:1]}, {"models": [*after, after[0]]}):
        with pytest.raises(InvalidInput, match="the 2 directories of its checkpoints"):
            relocate_index(root, **wrong)
    with pytest.raises(IndexCorrupt, match="changed"):
        relocate_index(root, models=after[::-1])
    assert relocate_index(root, models=after).spec.models == tuple(after)
    assert AttributionIndex.open(root).query(**ASKED, top_k=1).results
