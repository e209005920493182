"""`verify.together` unlearns all verified results at once, beside the sum of the single steps and random groups."""

import math
from pathlib import Path

import pytest
import torch

from bergson_core import AttributionIndex
from bergson_core.attribution.unlearning import Unlearner
from bergson_core.models.language_model import LanguageModel, as_language_model
from bergson_core.models.loading import load_model
from bergson_core.schemas.answer_parts.verification import Together
from bergson_core.schemas.query import AttributionQuery, VerifySpec
from bergson_core.schemas.results import Answer
from bergson_core.tokens.tokenization import tokenize
from bergson_core.utils.background import run_to_completion
from tests import reference, tiny
from tests.core.helpers import copy_weights, query

NAMES = ("log_probability", "probability", "own_log_probability")


@pytest.fixture
def opened(index: Path) -> AttributionIndex:
    return AttributionIndex.open(index)


def answer_of(opened: AttributionIndex, verify: dict, **changes: object) -> Answer:
    fields = {"direction": "proponents", "top_k": 4, "verify": {"together": True} | verify}
    (answer,) = opened.attribute([query(**(fields | changes))])
    assert isinstance(answer, Answer)
    return answer


def together_of(answer: Answer) -> Together:
    assert answer.verification is not None and answer.verification.together is not None
    return answer.verification.together


def test_the_step_on_a_group_is_that_of_plain_autograd_on_the_sum_of_the_losses(index):
    def in_float64(name: str, revision: str | None = None, dtype: str = "float32") -> LanguageModel:
        return load_model(name, revision, "float64")

    opened = AttributionIndex.open(index, load_model=in_float64)
    together = together_of(answer_of(opened, {"top": 3, "controls": 2, "learning_rate": 1e-3}))
    model, tokenizer = opened.model.model, opened.model.tokenizer
    documents = tokenize(tokenizer, tiny.texts(40), None)
    (query_tokens,) = tokenize(tokenizer, [query().prompt], [query().completion])
    unlearner, weights = run_to_completion(opened.verifier.fitted_unlearner()), copy_weights(model)

    def log_probability(*texts) -> float:
        with torch.no_grad():
            return -sum(float(reference.loss_of(model, text)) for text in texts)

    for effect in (together, *together.controls):
        group = [documents[int(document_id.removeprefix("doc-"))] for document_id in effect.ids]
        before, own = log_probability(query_tokens), log_probability(*group)
        model.requires_grad_(True).zero_grad()
        sum(reference.loss_of(model, document) for document in group).backward()
        with torch.no_grad():
            for name, weight in model.named_parameters():
                moment = unlearner.second_moments[name]
                whole = moment[0] if len(moment) == 1 else moment[0][:, None] * moment[1] / moment[0].mean()
                weight += 1e-3 * weight.grad / (whole + 0.01 * whole.mean()).sqrt()
        model.requires_grad_(False).zero_grad()
        after = log_probability(query_tokens)
        assert effect.log_probability == pytest.approx(after - before, rel=1e-6)
        assert effect.probability == pytest.approx(math.exp(after) - math.exp(before), rel=1e-6)
        assert effect.own_log_probability == pytest.approx(log_probability(*group) - own, rel=1e-6)
        model.load_state_dict(weights, strict=False)


def test_a_step_on_a_group_that_takes_several_batches_is_the_sum_of_the_single_steps(monkeypatch):
    tokens = tokenize(tiny.tokenizer(tiny.texts(6)), tiny.texts(6), None)
    unlearner = Unlearner.fit(as_language_model(tiny.model(dtype=torch.float64)), tokens)
    singles = [run_to_completion(unlearner.step_in_steps([document])) for document in tokens]
    monkeypatch.setattr("bergson_core.tokens.batching._CPU_STEP_TOKENS", 2 * len(tokens[0].ids))
    passes: list[None] = []
    group = run_to_completion(unlearner.step_in_steps(tokens), lambda: passes.append(None))
    assert len(passes) > 1
    for name, change in group.items():
        torch.testing.assert_close(change, sum(single[name] for single in singles))


def test_the_weights_are_the_models_own_between_all_steps_on_a_group(opened, monkeypatch):
    monkeypatch.setattr("bergson_core.tokens.batching._CPU_STEP_TOKENS", 12)
    before = copy_weights(opened.model.model)
    (plain,) = opened.attribute([query(top_k=4, direction="both")])
    asked = query(top_k=4, direction="both", verify={"top": 3, "controls": 2, "together": True})

    def check() -> None:
        assert all(
            torch.equal(weight, before[name]) for name, weight in copy_weights(opened.model.model).items()
        )

    answer = run_to_completion(opened.verify(asked, plain), check)
    check()
    assert answer.verification.opponents_together.ids == [row.id for row in plain.opponents[:3]]
    assert not any(weight.requires_grad for weight in opened.model.model.parameters())


def test_the_group_is_the_verified_results_and_the_sum_is_that_of_their_single_steps(opened):
    answer = answer_of(opened, {"top": 3, "controls": 2}, direction="both")
    verification = answer.verification
    for rows, together in (
        (answer.results, verification.together),
        (answer.opponents, verification.opponents_together),
    ):
        assert together.ids == [row.id for row in rows[:3]]
        for name in NAMES:
            singles = [getattr(row.verified, name) for row in rows[:3]]
            assert getattr(together.sum, name) == pytest.approx(sum(singles))
            values = [getattr(group, name) for group in together.controls]
            assert getattr(together.mean, name) == pytest.approx(sum(values) / 2)


def test_a_group_of_one_changes_what_its_single_step_changes(opened):
    together = together_of(answer_of(opened, {"top": 1, "controls": 1}))
    for name in NAMES:
        assert getattr(together, name) == pytest.approx(getattr(together.sum, name))


def test_for_a_small_rate_the_group_changes_as_much_as_the_single_steps(opened):
    together = together_of(answer_of(opened, {"top": 4, "controls": 0, "learning_rate": 1e-5}))
    assert together.log_probability == pytest.approx(together.sum.log_probability, rel=0.05)
    assert together.mean is None


def test_random_groups_have_as_many_documents_each_and_none_that_is_shown(opened):
    answer = answer_of(opened, {"top": 3, "controls": 5}, top_k=10)
    groups = together_of(answer).controls
    ids = [document_id for group in groups for document_id in group.ids]
    assert [len(group.ids) for group in groups] == [3] * 5
    assert len(set(ids)) == 15 and not set(ids) & {row.id for row in answer.results}
    few = answer_of(opened, {"top": 32, "controls": 5}, top_k=32)
    assert together_of(few).controls == [], "an index of 40 documents has no 32 others"


def test_unlearning_the_best_together_lowers_the_completion_more_than_random_groups(opened):
    together = together_of(answer_of(opened, {"top": 3, "controls": 3}))
    assert together.own_log_probability < 0
    assert together.log_probability < together.mean.log_probability


def test_without_together_nothing_of_it_is_computed(opened):
    verification = answer_of(opened, {"together": False}).verification
    assert (verification.together, verification.opponents_together) == (None, None)


def test_an_answer_without_a_document_has_no_group_with_it(opened):
    answer = answer_of(opened, {"top": 2, "controls": 3})
    together = together_of(answer)
    assert answer.without({together.ids[0]}).verification.together is None
    left = together_of(answer.without({together.controls[1].ids[0]}))
    assert left.controls == [together.controls[0], together.controls[2]]
    assert left.mean != together.mean and left.log_probability == together.log_probability


def test_a_step_on_a_group_that_breaks_the_model_gives_nulls(opened):
    together = together_of(answer_of(opened, {"top": 2, "controls": 1, "learning_rate": 1e38}))
    assert [getattr(part, name) for part in (together, together.sum, together.mean) for name in NAMES] == [
        None
    ] * 9


@pytest.mark.parametrize(("direction", "documents"), [("proponents", 3 + 4 + 15), ("both", 6 + 4 + 30)])
def test_documents_of_groups_count_as_unlearned(direction, documents):
    asked = AttributionQuery(
        prompt="a", direction=direction, verify=VerifySpec(top=3, controls=4, together=True)
    )
    assert asked.max_unlearned_documents == documents
