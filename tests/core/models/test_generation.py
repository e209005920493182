"""A query without a completion is answered as if the one that the model generates had been given; spans of it."""

from pathlib import Path

import pytest
import torch

from bergson_core import AttributionIndex
from bergson_core.data.batching import tokenize
from bergson_core.errors import InvalidInput, TooLong
from bergson_core.models.generation import generate_completion
from bergson_core.models.language_model import as_language_model
from tests.core.helpers import query


@pytest.fixture(scope="module")
def opened(index: Path) -> AttributionIndex:
    return AttributionIndex.open(index)


def test_a_generated_completion_is_answered_as_if_it_had_been_given(opened: AttributionIndex):
    without_completion = query().model_copy(update={"completion": None, "max_new_tokens": 4})
    (answer,) = opened.attribute([without_completion])
    assert answer.query.generated
    (given,) = opened.attribute([query(completion=answer.query.completion)])
    assert not given.query.generated
    assert answer.results == given.results
    assert answer.query.loss == given.query.loss


def test_each_token_is_the_most_likely_one(opened: AttributionIndex):
    model, prompt = opened.model, "Person 3 lives in"
    ids = model.tokenizer(prompt, return_tensors="pt").input_ids
    for _ in range(5):
        with torch.no_grad():
            best = model.model(input_ids=ids).logits[0, -1].argmax()
        ids = torch.cat([ids, best.reshape(1, 1)], dim=1)
    assert prompt + generate_completion(model, prompt, 5) == model.tokenizer.decode(ids[0])


def test_a_generated_completion_does_not_depend_on_other_queries(opened: AttributionIndex):
    queries = [query(f"Person {k} lives in the").model_copy(update={"completion": None}) for k in (1, 22)]
    together = opened.attribute(queries)
    alone = [opened.attribute([single])[0] for single in queries]
    assert [answer.query.completion for answer in together] == [answer.query.completion for answer in alone]


def test_a_prompt_that_leaves_no_room_is_an_error_and_nothing_is_cut(opened: AttributionIndex):
    with pytest.raises(TooLong, match="max_new_tokens"):
        generate_completion(opened.model, "Person 3 " * 10, opened.model.max_tokens)


def test_without_prompt_and_completion_there_is_nothing_to_continue(opened: AttributionIndex):
    (answer,) = opened.attribute([query("").model_copy(update={"completion": None})])
    assert isinstance(answer, InvalidInput)
    assert "nothing to continue" in str(answer)


def test_a_model_that_cannot_generate_says_what_it_needs(opened: AttributionIndex):
    plain = as_language_model(torch.nn.Linear(2, 2), opened.model.tokenizer)
    with pytest.raises(InvalidInput, match="expected a completion"):
        generate_completion(plain, "Person 3", 4)


def test_a_span_is_attributed_and_the_rest_is_context(opened: AttributionIndex):
    tokenizer, completion = opened.model.tokenizer, " city 1. Person 4 lives in city 2."
    start, end = completion.index(" Person"), completion.index(" lives")
    (whole,) = tokenize(tokenizer, ["Person 3 lives in"], [completion])
    (part,) = tokenize(tokenizer, ["Person 3 lives in"], [completion], [(start, end)])
    assert (part.ids == whole.ids).all()
    assert tokenizer.decode(part.ids[part.labels]) == completion[start:end]
    first, second = (
        opened.attribute([query(completion=completion, span=span)])[0]
        for span in ((0, start), (start, len(completion)))
    )
    (whole_answer,) = opened.attribute([query(completion=completion)])
    assert first.query.loss + second.query.loss == pytest.approx(whole_answer.query.loss, rel=1e-5)
    assert first.query.n_tokens + second.query.n_tokens == whole_answer.query.n_tokens


@pytest.mark.parametrize("span", [(0, 0), (3, 2), (-1, 2), (0, 99)])
def test_a_span_outside_of_the_completion_is_refused(span: tuple[int, int]):
    with pytest.raises(ValueError, match="the characters of the completion"):
        query(span=span)


def test_a_span_without_a_completion_is_refused():
    with pytest.raises(ValueError, match="expected one"):
        query(completion=None, span=(0, 1))  # type: ignore[arg-type]
