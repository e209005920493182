"""Verification unlearns the best results and random documents one by one, and restores the model after each."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from bergson_core import AttributionIndex, build_index, take_down_document
from bergson_core.attribution import unlearning
from bergson_core.errors import InternalError, InvalidInput
from bergson_core.models.index_tokens import tokenize_documents
from bergson_core.models.language_model import LanguageModel
from bergson_core.models.loading import load_model
from bergson_core.schemas.query import AttributionQuery, VerifySpec
from bergson_core.schemas.record import record_from_stored
from bergson_core.schemas.results import Answer, ResultRow
from bergson_core.schemas.source import ColumnsSpec
from bergson_core.tokens.tokenization import tokenize
from bergson_core.utils.background import run_to_completion
from tests import reference, tiny
from tests.core.helpers import copy_weights, make_spec, query


@pytest.fixture
def opened(index: Path) -> AttributionIndex:
    return AttributionIndex.open(index)


def verified_query(**changes: object) -> AttributionQuery:
    return query(**({"direction": "both", "top_k": 4, "verify": {"top": 2, "controls": 2}} | changes))


def verified_answer(opened: AttributionIndex, **changes: object) -> Answer:
    (answer,) = opened.attribute([verified_query(**changes)])
    assert isinstance(answer, Answer)
    return answer


def rows_of(answer: Answer) -> list[ResultRow]:
    return [*(answer.results or ()), *(answer.opponents or ())]


def log_probability(model: torch.nn.Module, tokens) -> float:
    with torch.no_grad():
        return -float(reference.loss_of(model, tokens))


@pytest.mark.parametrize("span", [None, (0, 5)])
def test_the_changes_are_those_of_a_step_by_plain_autograd(index, span):
    """Computes the numbers of the answer from backward() and the definition of the step alone."""

    def in_float64(name: str, revision: str | None = None, dtype: str = "float32") -> LanguageModel:
        return load_model(name, revision, "float64")

    opened = AttributionIndex.open(index, load_model=in_float64)
    answer = verified_answer(opened, span=span, verify={"top": 1, "controls": 1, "learning_rate": 1e-3})
    model, tokenizer, texts = opened.model.model, opened.model.tokenizer, tiny.texts(40)
    (query_tokens,) = tokenize(tokenizer, [verified_query().prompt], [verified_query().completion], [span])
    documents = tokenize(tokenizer, texts, None)
    sample = [int(document_id.removeprefix("doc-")) for document_id in opened.verifier.selector.draw(64, 0)]
    assert sorted(sample) == list(range(40)), "fewer documents than the sample wants: all of them"
    moments = {name: torch.zeros_like(weight) for name, weight in model.named_parameters()}
    gradients = []
    model.requires_grad_(True)
    for document in documents:
        model.zero_grad()
        reference.loss_of(model, document).backward()
        gradients.append({name: weight.grad.clone() for name, weight in model.named_parameters()})
        for name, gradient in gradients[-1].items():
            moments[name] += gradient.square() / len(documents)
    model.requires_grad_(False)
    for name, whole in moments.items():
        if whole.dim() == 2:
            whole = whole.mean(1)[:, None] * whole.mean(0) / whole.mean()
        moments[name] = (whole + 0.01 * whole.mean()).sqrt()
    before = log_probability(model, query_tokens)
    assert answer.verification.log_probability == pytest.approx(before, rel=1e-6)
    verified = [(row.id, row.verified) for row in rows_of(answer) if row.verified]
    assert [row.verified is None for row in answer.results] == [False, True, True, True]
    for document_id, effect in (
        *verified,
        (answer.verification.controls[0].id, answer.verification.controls[0]),
    ):
        number, weights = int(document_id.removeprefix("doc-")), copy_weights(model)
        own = log_probability(model, documents[number])
        with torch.no_grad():
            for name, weight in model.named_parameters():
                weight += 1e-3 * gradients[number][name] / moments[name]
        after = log_probability(model, query_tokens)
        assert effect.log_probability == pytest.approx(after - before, rel=1e-6)
        assert effect.probability == pytest.approx(math.exp(after) - math.exp(before), rel=1e-6)
        assert effect.own_log_probability == pytest.approx(log_probability(model, documents[number]) - own)
        model.load_state_dict(weights, strict=False)


def test_every_weight_is_unchanged_between_steps_and_afterwards(opened):
    before = copy_weights(opened.model.model)

    def unchanged() -> bool:
        return all(
            torch.equal(weight, before[name]) for name, weight in copy_weights(opened.model.model).items()
        )

    (plain,) = opened.attribute([verified_query(verify=None)])
    between: list[bool] = []
    verified = run_to_completion(opened.verify(verified_query(), plain), lambda: between.append(unchanged()))
    assert unchanged()
    # V and η from all forty documents, then each of the verified ones and of the controls
    assert between == [True] * (2 * 40 + 2 * 2 + 2)
    assert [row.verified is not None for row in verified.results] == [True, True, False, False]
    assert [row.verified is not None for row in verified.opponents] == [True, True, False, False]
    bare = [row.model_copy(update={"verified": None}) for row in verified.results]
    assert bare == plain.results
    assert verified.timing_ms.verify > 0
    assert verified.timing_ms.total == pytest.approx(plain.timing_ms.total + verified.timing_ms.verify)


def test_an_error_within_a_step_restores_the_model_and_the_next_query_is_answered(opened, monkeypatch):
    before, losses = copy_weights(opened.model.model), iter(range(2))
    measured = unlearning.compute_document_losses

    def fails(*args):
        if next(losses, None) is None:
            raise RuntimeError("out of memory")
        return measured(*args)

    monkeypatch.setattr(unlearning, "compute_document_losses", fails)
    (error,) = opened.attribute([verified_query()])
    assert isinstance(error, InternalError)
    assert str(error.__cause__) == "out of memory"
    monkeypatch.undo()
    assert all(torch.equal(weight, before[name]) for name, weight in copy_weights(opened.model.model).items())
    assert not any(
        weight.requires_grad or weight.grad is not None for weight in opened.model.model.parameters()
    )
    assert verified_answer(opened).verification


def test_the_unlearner_is_fitted_once_and_a_fit_that_was_given_up_is_continued(opened):
    (plain,) = opened.attribute([verified_query(verify=None)])
    first, second = (opened.verify(verified_query(), plain) for _ in range(2))
    for _ in range(30):  # both verifications contribute steps to the same fit
        next(first)
        next(second)
    first.close()
    remaining_steps = 2 * 40 - 60 + 2 * 2 + 2
    assert sum(1 for _ in second) == remaining_steps
    assert sum(1 for _ in opened.verify(verified_query(), plain)) == 2 * 2 + 2


def test_two_indexes_that_share_a_model_verify_alternately_as_each_does_alone(index):
    shared = load_model(AttributionIndex.open(index).manifest.spec.model)
    first, second = (AttributionIndex.open(index, load_model=lambda *_: shared) for _ in range(2))
    other = query("Person 4 lives in", " city 2.", top_k=3, verify={"top": 3})
    (plain_first, plain_second), answers = (
        first.attribute([verified_query(verify=None), query("Person 4 lives in", " city 2.")]),
        [],
    )
    under_way = [first.verify(verified_query(), plain_first), second.verify(other, plain_second)]
    while under_way:
        steps = under_way.pop(0)
        try:
            next(steps)
            under_way.append(steps)
        except StopIteration as end:
            answers.append(end.value)
    alone = [
        run_to_completion(first.verify(verified_query(), plain_first)),
        run_to_completion(second.verify(other, plain_second)),
    ]
    for answer, expected in zip(answers, alone, strict=True):
        assert answer.verification == expected.verification
        assert rows_of(answer) == rows_of(expected)


def test_the_same_query_has_the_same_answer(opened, index):
    first, second, other = (verified_answer(each) for each in (opened, opened, AttributionIndex.open(index)))
    for answer in (second, other):
        assert answer.verification == first.verification
        assert rows_of(answer) == rows_of(first)


def test_the_controls_of_a_query_do_not_depend_on_how_many_results_it_asks_for(opened):
    few, many, more = (
        verified_answer(opened, direction="proponents", top_k=top_k, verify={"top": 1, "controls": controls})
        for top_k, controls in ((1, 4), (20, 4), (1, 6))
    )
    of_few, of_many, of_more = (
        [control.id for control in answer.verification.controls] for answer in (few, many, more)
    )
    results = {row.id for row in many.results}
    remaining = [document_id for document_id in of_few if document_id not in results]
    assert of_many[: len(remaining)] == remaining
    assert of_more[:4] == of_few


def test_a_batch_verifies_only_the_queries_that_ask_for_it(opened):
    plain, verified = opened.attribute([verified_query(verify=None), verified_query()])
    assert plain.verification is None
    assert plain.timing_ms.verify == 0
    assert not any(row.verified for row in rows_of(plain))
    assert verified.verification


def test_opponents_alone_are_verified_where_they_are_asked_for(opened):
    answer = verified_answer(opened, direction="opponents")
    assert answer.results is None
    assert [row.verified is not None for row in answer.opponents] == [True, True, False, False]


def test_controls_are_not_among_the_results_and_their_mean_is_given(opened):
    answer = verified_answer(opened, top_k=15, direction="proponents", verify={"top": 1, "controls": 25})
    results, controls = {row.id for row in answer.results}, answer.verification.controls
    assert {control.id for control in controls} == {f"doc-{k}" for k in range(40)} - results
    assert len(controls) == 25
    for name in ("log_probability", "probability", "own_log_probability"):
        values = [getattr(control, name) for control in controls]
        assert getattr(answer.verification.mean, name) == pytest.approx(np.mean(values))
    without = answer.without({controls[0].id, answer.results[0].id})
    assert without.verification.controls == controls[1:]
    assert without.verification.mean != answer.verification.mean
    no_controls = verified_answer(opened, verify={"controls": 0}).verification
    assert (no_controls.controls, no_controls.mean) == ([], None)


def test_the_takedowns_are_read_once_for_all_documents_of_a_sample(opened, monkeypatch):
    selector, reads = opened.verifier.selector, []
    masks = [np.arange(shard.entry.rows) != 1 for shard in opened.shards]
    monkeypatch.setattr(selector.searcher.visible, "masks", lambda: reads.append(1) or masks)
    assert selector.is_visible((0, 0), (1, 0), (2, 0))
    assert not selector.is_visible((0, 0), (1, 0), (2, 1))
    assert len(reads) == 2


def test_documents_that_were_taken_down_are_not_drawn(sources, tmp_path):
    path = tmp_path / "facts"
    build_index(make_spec(sources), path, shard_rows=16)
    opened = AttributionIndex.open(path)
    verify = {"top": 1, "controls": 32}
    before = verified_answer(opened, verify=verify)
    assert len(before.verification.controls) == 32
    taken_down = [before.verification.controls[0].id, before.results[0].id]
    for document_id in taken_down:
        take_down_document(path, document_id)
    after = verified_answer(opened, verify=verify)
    ids = {control.id for control in after.verification.controls} | {row.id for row in rows_of(after)}
    assert not ids.intersection(taken_down)
    assert after.verification.learning_rate != before.verification.learning_rate, "another sample"
    assert len(opened.verifier._fit.locations) == 38
    assert verified_answer(AttributionIndex.open(path), verify=verify).verification == after.verification


def test_unlearning_results_lowers_the_completions_probability_more_than_unlearning_controls(opened):
    answer = verified_answer(opened, top_k=3, direction="proponents", verify={"top": 3, "controls": 3})
    effects = [row.verified for row in answer.results]
    assert all(effect.own_log_probability < 0 for effect in effects)
    assert np.mean([effect.log_probability for effect in effects]) < answer.verification.mean.log_probability


def test_a_step_that_breaks_the_model_gives_nulls(opened):
    answer = verified_answer(opened, verify={"top": 1, "controls": 1, "learning_rate": 1e38})
    broken = answer.results[0].verified
    assert (broken.log_probability, broken.probability, broken.own_log_probability) == (None, None, None)
    assert answer.verification.mean.log_probability is None
    assert Answer.model_validate_json(answer.model_dump_json()) == answer
    assert opened.attribute([verified_query(verify=None)])[0].query.loss == pytest.approx(answer.query.loss)


def test_stored_documents_are_tokenised_as_in_the_build(sources, tmp_path):
    pairs = tuple({"q": f"city {k} is", "a": f" number {k * 7}"} for k in range(6))
    spec = make_spec(
        sources,
        dataset=None,
        documents=pairs,
        columns=ColumnsSpec(prompt="q", completion="a"),
        gradients={"projection_dim": 4, "loss": "mean"},
    )
    build_index(spec, tmp_path / "facts")
    opened = AttributionIndex.open(tmp_path / "facts")
    (tokens,) = opened.verifier.selector.tokenize([(0, 3)])
    record = record_from_stored(
        {"id": "3", "prompt": pairs[3]["q"], "completion": pairs[3]["a"]}, spec.columns
    )
    (expected,) = tokenize_documents([record], spec, opened.model)
    assert (tokens.ids == expected.ids).all()
    assert tokens.weight == pytest.approx(1 / tokens.n_labelled)
    assert tokens.n_labelled < len(tokens.ids) - 1
    assert verified_answer(opened, prompt="city 3 is", completion=" number 21").results[0].verified


def test_an_index_of_a_training_run_cannot_be_verified(opened):
    trained = opened.manifest.model_copy(update={"origin": "training"})
    opened.verifier._manifest = trained
    refused, plain = opened.attribute([verified_query(), verified_query(verify=None)])
    assert isinstance(refused, InvalidInput)
    assert "leave `verify` out" in str(refused)
    assert isinstance(plain, Answer)


def test_an_index_whose_documents_have_no_gradient_is_refused_every_time(sources, tmp_path):
    documents = ({"text": "a"}, {"text": "a b c"})
    build_index(
        make_spec(sources, dataset=None, documents=documents, columns=ColumnsSpec()), tmp_path / "facts"
    )
    take_down_document(tmp_path / "facts", "1")
    opened = AttributionIndex.open(tmp_path / "facts")
    for _ in range(2):
        (refused,) = opened.attribute([verified_query()])
        assert isinstance(refused, InvalidInput)
        assert "none of 0 documents has a gradient" in str(refused)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"top": 0}, "expected at least 1"),
        ({"top": 33}, "expected at most 32"),
        ({"controls": -1}, "expected at least 0"),
        ({"controls": 33}, "expected at most 32"),
        ({"learning_rate": 0}, "expected more than 0"),
        ({"top": "3"}, "expected a number"),
        ({"steps": 3}, "steps: no such field"),
    ],
)
def test_a_bad_verify_spec_is_refused(fields, message):
    with pytest.raises(InvalidInput, match=message):
        VerifySpec.model_validate(fields)
