"""An index measured: what each measure says of rankings that are known to be right or wrong."""

import json
from pathlib import Path

import numpy as np
import pytest
from datasets import Dataset

from bergson_core import AttributionIndex, build_index
from bergson_core.errors import ColumnNotFound, InvalidInput
from bergson_core.evaluation import evaluate as evaluate_module
from bergson_core.evaluation.baselines import gradient_scores, representation_scores
from bergson_core.evaluation.evaluate import evaluate_index
from bergson_core.evaluation.ground_truth import IndexedDocuments, read_queries
from bergson_core.evaluation.queries import EvaluationQuery
from bergson_core.evaluation.retraining import BuiltInTrainer
from bergson_core.schemas.build import ColumnsSpec, DatasetSpec
from bergson_core.schemas.evaluation import EvaluationSpec, TrainingSpec
from bergson_core.schemas.training import TrainingSchedule
from bergson_core.storage.document_lookup import take_down_document
from tests import reference, tiny
from tests.core.helpers import make_spec

QUERIES = [EvaluationQuery(f"q{k}", f"Person {k} lives in", f" city {k}", f"fact-{k}") for k in range(3)]


@pytest.fixture(scope="module")
def facts(sources: Path, tmp_path_factory: pytest.TempPathFactory) -> AttributionIndex:
    """Twelve documents of three facts."""
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


def small(**fields: object) -> TrainingSpec:
    schedule = TrainingSchedule(batch_size=4, epochs=1, least_steps=2, learning_rate=1e-3)
    return TrainingSpec.model_validate({"schedule": schedule, "scratch": True, "runs": 10} | fields)


def test_every_method_is_measured_by_every_measure(facts, tmp_path):
    told = []
    measures = ("retrieval", "unlearning", "tail_patch", "lds", "removal")
    training = small(removal_queries=2, removal_repeats=1, removal_share=0.2)
    spec = EvaluationSpec(measures=measures, top_k=2, training=training)
    found = evaluate_index(facts, QUERIES, spec, cache=tmp_path, report=told.append)
    assert (found.documents, found.queries) == (12, 3)
    assert list(found.methods) == ["index", *EvaluationSpec().baselines, "gold"]
    for name, its in found.methods.items():
        assert (its.retrieval is None) == (name == "gold")
        assert None not in (its.unlearning, its.tail_patch, its.lds, its.lds_thresholded, its.removal)
    assert {one.stage for one in told} == {"score", "unlearning", "tail_patch", "retrain", "remove"}
    again = evaluate_index(facts, QUERIES, spec, cache=tmp_path)
    assert again == found, "the same seed gives the same figures, from the losses that are kept"


def test_unlearning_the_right_documents_lowers_the_answer_and_learning_them_raises_it(facts):
    spec = EvaluationSpec(measures=("unlearning", "tail_patch"), baselines=("random",), learning_rate=1e-4)
    found = evaluate_index(facts, QUERIES, spec)
    assert found.learning_rate == 1e-4
    gold, chance = found.methods["gold"], found.methods["random"]
    assert gold.unlearning is not None and gold.tail_patch is not None and chance.unlearning is not None
    assert gold.unlearning.log_probability.mean < chance.unlearning.log_probability.mean
    assert gold.unlearning.probability.mean < 0 < gold.tail_patch.probability.mean


def test_an_index_of_a_small_model_finds_what_shares_the_fact(facts):
    found = evaluate_index(
        facts, QUERIES, EvaluationSpec(measures=("retrieval",), baselines=("bm25", "random"))
    )
    index, chance = found.methods["index"].retrieval, found.methods["random"].retrieval
    assert index is not None and chance is not None and index.mrr > chance.mrr


def test_documents_that_were_taken_down_are_not_measured(facts, sources, tmp_path):
    build_index(facts.manifest.spec, tmp_path / "index")
    take_down_document(tmp_path / "index", "d0")
    index = AttributionIndex.open(tmp_path / "index")
    assert IndexedDocuments.of(index).ids == [f"d{k}" for k in range(1, 12)]
    assert evaluate_index(index, QUERIES, EvaluationSpec(measures=("retrieval",))).documents == 11
    for k in range(1, 12):
        take_down_document(tmp_path / "index", f"d{k}")
    with pytest.raises(InvalidInput, match="all documents of index were taken down"):
        evaluate_index(index, QUERIES)


def test_the_gradient_baseline_is_that_of_plain_autograd(facts):
    corpus, model = IndexedDocuments.of(facts), facts.model
    names = [module.name for module in facts.manifest.modules]
    dots, cosines = gradient_scores(model, corpus.tokens[:5], corpus.tokens[5:8], names)
    rows = reference.gradients(model.model.requires_grad_(True), names, corpus.tokens[:8])
    model.model.requires_grad_(False)
    whole = np.concatenate([part.flatten(1).detach().numpy() for part in rows.values()], axis=1)
    expected = whole[5:8] @ whole[:5].T
    np.testing.assert_allclose(dots, expected, rtol=1e-4)
    lengths = np.linalg.norm(whole, axis=1)
    np.testing.assert_allclose(cosines, expected / lengths[5:8, None] / lengths[:5], rtol=1e-4, atol=1e-6)


def test_representations_are_alike_alone_and_in_a_batch(facts):
    tokens = IndexedDocuments.of(facts).tokens
    together = representation_scores(facts.model, tokens, tokens[:2])
    alone = np.concatenate([representation_scores(facts.model, [one], tokens[:2]) for one in tokens], axis=1)
    np.testing.assert_allclose(together, alone, atol=1e-5)
    np.testing.assert_allclose(np.diagonal(together), 1, atol=1e-5)


@pytest.mark.parametrize(
    ("queries", "spec", "says"),
    [
        ([], EvaluationSpec(), "no queries"),
        (
            [EvaluationQuery("lost", "a b", " c", "no such")],
            EvaluationSpec(),
            "'lost' has no gold documents: none in",
        ),
        (
            [EvaluationQuery("none", "a b", " c", "")],
            EvaluationSpec(),
            "'none' has no gold documents: none in",
        ),
        (QUERIES, EvaluationSpec(gold="person"), "no metadata column 'person' .* it has fact"),
        (QUERIES, EvaluationSpec(measures=("lds",)), "expected one of a training command, .* got none"),
        (QUERIES, EvaluationSpec(measures=("lds",), training=small(runs=9)), "9 training runs are too few"),
        (QUERIES, EvaluationSpec(measures=("lds",), training=small(start="x")), "expected one of .* got 2"),
        (
            [EvaluationQuery("long", "a" * 99, " b", "fact-0")],
            EvaluationSpec(),
            "'long' has .* more than the 64",
        ),
    ],
)
def test_what_cannot_be_measured_is_an_error_that_says_why(facts, tmp_path, monkeypatch, queries, spec, says):
    monkeypatch.setattr(BuiltInTrainer, "run", lambda *_: pytest.fail("trained for nothing"))
    with pytest.raises(InvalidInput, match=says):
        evaluate_index(facts, queries, spec, cache=tmp_path)


def test_runs_from_another_model_are_other_runs(facts, sources, tmp_path):
    other = tiny.save_model(tmp_path / "other", seed=1)
    keys = []
    for start in (sources / "model", other):
        spec = EvaluationSpec(measures=("lds",), training=small(scratch=False, start=str(start)))
        trainer = evaluate_module._Evaluator(facts, QUERIES, spec, tmp_path, lambda progress: None).trainer
        assert trainer is not None
        keys.append(trainer.key())
    assert keys[0] != keys[1]


def test_queries_are_read_with_or_without_ids_and_facts():
    rows = Dataset.from_dict({"prompt": ["a", "b"], "completion": [" c", " d"]})
    assert [(query.id, query.fact) for query in read_queries(rows, "fact")] == [("0", ""), ("1", "")]
    with pytest.raises(ColumnNotFound, match="no column 'completion'"):
        read_queries(rows.remove_columns("completion"), "fact")
    with pytest.raises(InvalidInput, match="same id"):
        read_queries(rows.add_column("id", ["x", "x"]), "fact")
    with pytest.raises(InvalidInput, match="query 1: expected a prompt"):
        read_queries(Dataset.from_dict({"prompt": ["a", None], "completion": [" c", " d"]}), "fact")
