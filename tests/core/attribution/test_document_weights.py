"""The weights that documents were indexed with are kept, and count when documents are unlearned or trained on."""

import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch

from bergson_core import (
    AppendSpec,
    AttributionIndex,
    BuildSpec,
    append_documents,
    build_index,
    compact_index,
    read_manifest,
    take_down_document,
)
from bergson_core.errors import InvalidInput
from bergson_core.evaluation.inputs import EvaluationInputs, IndexedDocuments
from bergson_core.evaluation.queries import EvaluationQuery
from bergson_core.evaluation.retraining_measures import make_trainer
from bergson_core.models.loading import load_model
from bergson_core.schemas.evaluation import TrainingSpec
from bergson_core.storage.document_table import DOCUMENT_TABLE_FILE
from bergson_core.storage.integrity import make_file_entry
from bergson_core.storage.manifest import MANIFEST_FILE
from tests import reference, tiny
from tests.core.helpers import copy_weights, make_spec

WEIGHTS = [1.0, 2.0, -3.0, 0.0, 0.5, 1.0, -0.25, 4.0, 0.0, 1.5, 1.0, 3.0]


def documents(weights: list[float], first: int = 0) -> tuple[dict, ...]:
    texts = tiny.texts(first + len(weights))[first:]
    return tuple(
        {"id": f"doc-{first + k}", "text": text, "reward": weight}
        for k, (text, weight) in enumerate(zip(texts, weights, strict=True))
    )


def weighted_spec(sources: Path, **changes: object) -> BuildSpec:
    columns = {"id": "id", "weight": "reward"}
    return make_spec(sources, dataset=None, documents=documents(WEIGHTS), columns=columns, **changes)


@pytest.fixture(scope="module")
def weighted(sources, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("weighted") / "facts"
    build_index(weighted_spec(sources), path, shard_rows=5)
    return path


@pytest.fixture
def own_index(weighted: Path, tmp_path: Path) -> Path:
    """A copy of the index that a test may change."""
    return Path(shutil.copytree(weighted, tmp_path / "facts"))


def stored_weights(index: Path) -> dict[str, float]:
    read = IndexedDocuments.read(AttributionIndex.open(index))
    return dict(zip(read.ids, read.weights, strict=True))


def test_weights_are_kept_over_appends_and_compactions(own_index):
    append_documents(own_index, AppendSpec(documents=documents([-7.0, 0.0], first=12)))
    take_down_document(own_index, "doc-1")
    compact_index(own_index)
    expected = {f"doc-{k}": weight for k, weight in enumerate([*WEIGHTS, -7.0, 0.0]) if k != 1}
    assert stored_weights(own_index) == expected


@pytest.mark.parametrize("loss", ["sum", "mean"])
def test_stored_documents_have_the_loss_that_the_index_was_built_with(sources, tmp_path, loss):
    build_index(weighted_spec(sources, gradients={"projection_dim": 4, "loss": loss}), tmp_path / "facts")
    opened = AttributionIndex.open(tmp_path / "facts")
    tokens = IndexedDocuments.read(opened).tokens
    factors = [1 / document.n_labelled if loss == "mean" else 1 for document in tokens]
    assert [document.weight for document in tokens] == pytest.approx(np.multiply(WEIGHTS, factors))


def in_float64(name: str, revision: str | None = None, dtype: str = "float32"):
    return load_model(name, revision, "float64")


def test_verification_unlearns_by_the_gradient_of_the_weighted_loss(weighted):
    """Computes the numbers of the answer from backward() and the definition of the step alone."""
    opened = AttributionIndex.open(weighted, load_model=in_float64)
    verify = {"top": 12, "controls": 1, "learning_rate": 1e-3}
    answer = opened.query("Person 3 lives", " in city 3", top_k=12, verify=verify)
    rows = {row.id: row.verified for row in answer.results}
    model, moments = opened.model.model, opened.verifier._fit.unlearner.second_moments
    tokens, before = IndexedDocuments.read(opened).tokens, copy_weights(model)
    for number, document in enumerate(tokens):
        model.requires_grad_(True).zero_grad()
        own_loss = reference.loss_of(model, document)
        (WEIGHTS[number] * own_loss).backward()
        with torch.no_grad():
            for name, weight in model.named_parameters():
                if weight.grad is not None and name in moments:
                    weight.add_(1e-3 * weight.grad * scale(moments[name]))
            change = float(own_loss - reference.loss_of(model, document))
            for name, weight in model.named_parameters():
                weight.copy_(before[name])
        verified = rows[f"doc-{number}"]
        assert verified.own_log_probability == pytest.approx(change, rel=1e-6, abs=1e-9)
        assert np.sign(verified.own_log_probability) == -np.sign(WEIGHTS[number])
    model.zero_grad(set_to_none=True)


def scale(moment: tuple[torch.Tensor, ...]) -> torch.Tensor:
    """(V + δ mean V)^-½ from the factors of V."""
    whole = moment[0] if len(moment) == 1 else torch.outer(*moment) / moment[0].mean()
    damped = whole + 0.01 * whole.mean()
    return torch.where(damped > 0, damped.rsqrt(), 0)


def test_documents_of_weight_zero_are_no_controls(weighted):
    opened = AttributionIndex.open(weighted)
    drawn = opened.verifier.selector.draw(12, seed=0)
    assert set(drawn) == {f"doc-{k}" for k, weight in enumerate(WEIGHTS) if weight}


def test_the_default_step_makes_the_median_document_half_as_likely_whatever_the_weights_are(
    sources, tmp_path
):
    rates = {}
    for factor in (1.0, -8.0):
        rows = documents([factor] * 12)
        spec = weighted_spec(sources).model_copy(update={"documents": rows})
        build_index(spec, tmp_path / str(factor))
        opened = AttributionIndex.open(tmp_path / str(factor), load_model=in_float64)
        answer = opened.query("Person 3 lives", " in city 3", top_k=3, verify={"top": 1, "controls": 2})
        rates[factor] = answer.verification.learning_rate
    # V has the squares of the weighted gradients, so that a step does not depend on a common factor.
    assert rates[-8.0] == pytest.approx(rates[1.0], rel=1e-6)


def test_an_index_of_the_first_release_says_that_its_weights_are_lost(own_index, weighted):
    without_weights(own_index)
    opened = AttributionIndex.open(own_index)
    plain = opened.query("Person 3 lives", " in city 3", include=["text", "tokens"])
    assert len(plain.results) == 10
    for use in (
        lambda: opened.query("Person 3 lives", " in city 3", verify={}),
        lambda: IndexedDocuments.read(opened),
    ):
        with pytest.raises(
            InvalidInput, match=r"weights .*'reward'.* not in the index.* build the index again"
        ):
            use()
    append_documents(own_index, AppendSpec(documents=documents([2.0] * 4, first=12)))
    assert AttributionIndex.open(own_index).query("Person 3", " lives").results


def test_an_index_of_the_first_release_without_weights_is_verified_as_before(index, tmp_path):
    own = Path(shutil.copytree(index, tmp_path / "facts"))
    without_weights(own)
    verify = {"top": 2, "controls": 2}
    old, new = (
        AttributionIndex.open(path).query("Person 3 lives in", " city 3.", verify=verify)
        for path in (own, index)
    )
    assert [row.verified for row in old.results] == [row.verified for row in new.results]
    take_down_document(own, "doc-3")
    assert compact_index(own).rows == 39
    assert set(stored_weights(own).values()) == {1.0}


def without_weights(index: Path) -> None:
    """Makes the document tables of an index what release 0.1.0 would have written."""
    manifest = read_manifest(index)
    shards = []
    for shard in manifest.shards:
        path = index / "shards" / shard.name / DOCUMENT_TABLE_FILE
        table = pa.ipc.open_file(path.read_bytes()).read_all().drop_columns(["weight"])
        with pa.OSFile(str(path), "wb") as file, pa.ipc.new_file(file, table.schema) as writer:
            writer.write_table(table)
        files = tuple(
            make_file_entry(index / entry.path, index) if entry.path.endswith(".arrow") else entry
            for entry in shard.files
        )
        shards.append(shard.model_copy(update={"files": files}))
    changed = manifest.model_copy(update={"shards": tuple(shards)})
    (index / MANIFEST_FILE).write_text(changed.model_dump_json())


def trainer_of(index: Path, **training: object):
    opened = AttributionIndex.open(index)
    queries = [EvaluationQuery("q", "Person 3 lives", " in city 3")]
    return make_trainer(
        EvaluationInputs.read(opened, queries, "source"), TrainingSpec.model_validate(training)
    )


def test_a_training_command_gets_the_weights(weighted, index):
    command = "python train.py {dataset} {output}"
    assert [row["weight"] for row in trainer_of(weighted, command=command).documents] == WEIGHTS
    assert "weight" not in trainer_of(index, command=command).documents[0]


def test_the_training_loop_gets_the_weights_and_a_cache_knows_them(weighted, sources, tmp_path):
    trainer = trainer_of(weighted, start=str(sources / "model"))
    assert [document.weight for document in trainer.documents] == WEIGHTS
    spec = weighted_spec(sources).model_copy(update={"documents": documents(WEIGHTS[::-1])})
    build_index(spec, tmp_path / "facts")
    assert trainer_of(tmp_path / "facts", start=str(sources / "model")).cache_key() != trainer.cache_key()
