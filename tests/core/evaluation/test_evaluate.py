"""Evaluating an index gives the results that rankings known to be right or wrong must have."""

import json
from pathlib import Path

import numpy as np
import pytest

from bergson_core import AttributionIndex, build_index
from bergson_core.errors import InvalidInput
from bergson_core.evaluation.baseline_scores import gradient_scores, representation_scores
from bergson_core.evaluation.evaluate import evaluate_index
from bergson_core.evaluation.inputs import EvaluationInputs, IndexedDocuments
from bergson_core.evaluation.queries import EvaluationQuery
from bergson_core.evaluation.retraining_measures import make_trainer
from bergson_core.evaluation.trainers import BuiltInTrainer
from bergson_core.schemas.evaluation import EvaluationSpec, TrainingSpec
from bergson_core.schemas.source import ColumnsSpec, DatasetSpec
from bergson_core.schemas.training import TrainingSchedule
from bergson_core.storage.document_lookup import take_down_document
from tests import reference, tiny
from tests.core.helpers import make_spec

QUERIES = [EvaluationQuery(f"q{k}", f"Person {k} lives in", f" city {k}", f"fact-{k}") for k in range(3)]


@pytest.fixture(scope="module")
def facts(sources: Path, tmp_path_factory: pytest.TempPathFactory) -> AttributionIndex:
    """An index of twelve documents that state three facts."""
    root = tmp_path_factory.mktemp("facts")
    rows = [
        {"id": f"d{k}", "text": f"Person {k % 3} lives in city {k % 3}, said {k}.", "fact": f"fact-{k % 3}"}
        for k in range(12)
    ]
    (root / "documents.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    columns = ColumnsSpec(id="id", metadata=("fact",))
    spec = make_spec(sources, dataset=DatasetSpec(path=str(root / "documents.jsonl")), columns=columns)
    build_index(spec, root / "index")
    return AttributionIndex.open(root / "index")


def short_training(**fields: object) -> TrainingSpec:
    """Ten runs of two steps each, from new weights."""
    schedule = TrainingSchedule(batch_size=4, epochs=1, least_steps=2, learning_rate=1e-3)
    return TrainingSpec.model_validate({"schedule": schedule, "scratch": True, "runs": 10} | fields)


def test_every_method_is_measured_by_every_measure(facts, tmp_path):
    progress = []
    measures = ("retrieval", "unlearning", "tail_patch", "lds", "removal")
    training = short_training(removal_queries=2, removal_repeats=1, removal_share=0.2)
    spec = EvaluationSpec(measures=measures, top_k=2, training=training)
    evaluation = evaluate_index(facts, QUERIES, spec, cache=tmp_path, report=progress.append)
    assert (evaluation.documents, evaluation.queries) == (12, 3)
    assert list(evaluation.methods) == ["index", *EvaluationSpec().baselines, "gold"]
    for name, measured in evaluation.methods.items():
        assert (measured.retrieval is None) == (name == "gold")
        assert measured.unlearning is not None and measured.tail_patch is not None
        assert None not in (measured.lds, measured.lds_thresholded, measured.removal)
    assert {step.stage for step in progress} == {"score", "unlearning", "tail_patch", "retrain", "remove"}
    again = evaluate_index(facts, QUERIES, spec, cache=tmp_path)
    assert again == evaluation, "the same seed gives the same figures, from the stored losses"


def test_unlearning_the_right_documents_lowers_the_answer_and_learning_them_raises_it(facts):
    spec = EvaluationSpec(measures=("unlearning", "tail_patch"), baselines=("random",), learning_rate=1e-4)
    evaluation = evaluate_index(facts, QUERIES, spec)
    assert evaluation.learning_rate == 1e-4
    gold, random = evaluation.methods["gold"], evaluation.methods["random"]
    assert gold.unlearning is not None and gold.tail_patch is not None and random.unlearning is not None
    assert gold.unlearning.log_probability.mean < random.unlearning.log_probability.mean
    assert gold.unlearning.probability.mean < 0 < gold.tail_patch.probability.mean


def test_an_index_of_a_small_model_finds_documents_of_the_same_fact(facts):
    spec = EvaluationSpec(measures=("retrieval",), baselines=("bm25", "random"))
    methods = evaluate_index(facts, QUERIES, spec).methods
    index, random = methods["index"].retrieval, methods["random"].retrieval
    assert index is not None and random is not None and index.mrr > random.mrr


def test_documents_that_were_taken_down_are_not_measured(facts, sources, tmp_path):
    build_index(facts.manifest.spec, tmp_path / "index")
    take_down_document(tmp_path / "index", "d0")
    index = AttributionIndex.open(tmp_path / "index")
    assert IndexedDocuments.read(index).ids == [f"d{k}" for k in range(1, 12)]
    assert evaluate_index(index, QUERIES, EvaluationSpec(measures=("retrieval",))).documents == 11
    for k in range(1, 12):
        take_down_document(tmp_path / "index", f"d{k}")
    with pytest.raises(InvalidInput, match="all documents of index were taken down"):
        evaluate_index(index, QUERIES)


def test_the_gradient_baseline_equals_plain_autograd(facts):
    tokens, model = IndexedDocuments.read(facts).tokens, facts.model
    names = [module.name for module in facts.manifest.modules]
    dots, cosines = gradient_scores(model, tokens[:5], tokens[5:8], names)
    gradients = reference.gradients(model.model.requires_grad_(True), names, tokens[:8])
    model.model.requires_grad_(False)
    full = np.concatenate([part.flatten(1).detach().numpy() for part in gradients.values()], axis=1)
    expected = full[5:8] @ full[:5].T
    np.testing.assert_allclose(dots, expected, rtol=1e-4)
    norms = np.linalg.norm(full, axis=1)
    np.testing.assert_allclose(cosines, expected / norms[5:8, None] / norms[:5], rtol=1e-4, atol=1e-6)


def test_representations_are_alike_alone_and_in_a_batch(facts):
    tokens = IndexedDocuments.read(facts).tokens
    together = representation_scores(facts.model, tokens, tokens[:2])
    alone = np.concatenate(
        [representation_scores(facts.model, [document], tokens[:2]) for document in tokens], axis=1
    )
    np.testing.assert_allclose(together, alone, atol=1e-5)
    np.testing.assert_allclose(np.diagonal(together), 1, atol=1e-5)


@pytest.mark.parametrize(
    ("queries", "spec", "message"),
    [
        ([], EvaluationSpec(), "no queries"),
        (
            [EvaluationQuery("lost", "a b", " c", "no such")],
            EvaluationSpec(),
            "'lost' has no gold documents: no document in",
        ),
        (
            [EvaluationQuery("none", "a b", " c", "")],
            EvaluationSpec(),
            "'none' has no gold documents: no document in",
        ),
        (QUERIES, EvaluationSpec(gold="person"), "no metadata column 'person' .* it has fact"),
        (QUERIES, EvaluationSpec(measures=("lds",)), "expected one of a training command, .* got none"),
        (
            QUERIES,
            EvaluationSpec(measures=("lds",), training=short_training(runs=9)),
            "9 training runs are too few",
        ),
        (
            QUERIES,
            EvaluationSpec(measures=("lds",), training=short_training(start="x")),
            "expected one of .* got 2",
        ),
        (
            [EvaluationQuery("long", "a" * 99, " b", "fact-0")],
            EvaluationSpec(),
            "'long' has .* more than the 64",
        ),
    ],
)
def test_inputs_that_cannot_be_evaluated_are_errors_before_anything_is_trained(
    facts, tmp_path, monkeypatch, queries, spec, message
):
    monkeypatch.setattr(BuiltInTrainer, "train", lambda *_: pytest.fail("trained for nothing"))
    with pytest.raises(InvalidInput, match=message):
        evaluate_index(facts, queries, spec, cache=tmp_path)


def test_losses_of_runs_from_different_models_are_stored_apart(facts, sources, tmp_path):
    other = tiny.save_model(tmp_path / "other", seed=1)
    keys = []
    inputs = EvaluationInputs.read(facts, QUERIES, gold_column="fact")
    for start in (sources / "model", other):
        trainer = make_trainer(inputs, short_training(scratch=False, start=str(start)))
        keys.append(trainer.cache_key())
    assert keys[0] != keys[1]
