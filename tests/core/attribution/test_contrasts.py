"""A query with `instead_of` explains log p(completion) - log p(instead_of), by the difference of their gradients."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from datasets import Dataset

from bergson_core import AttributionIndex, AttributionQuery, build_index
from bergson_core.attribution.corpus_scores import score_corpus
from bergson_core.attribution.queries import contrast_warnings
from bergson_core.errors import InvalidInput
from bergson_core.gradients.row_collector import collect_rows
from bergson_core.schemas.build import GradientSpec, ScoringSpec
from bergson_core.schemas.query import VerifySpec
from bergson_core.tokens.tokenization import tokenize
from tests.core.attribution.queries.test_chat_queries import chat_spec, save_chat_model
from tests.core.helpers import make_spec, query
from tests.core.tokens import chat_templates as templates

PROMPT, A, B = "Person 3 lives in", " city 1.", " city 4 and works"


@pytest.fixture(scope="module")
def opened(index):
    return AttributionIndex.open(index)


@pytest.fixture(scope="module")
def linear(sources, tmp_path_factory):
    """An index whose scores are the inner products of rows, so that the scores of a difference are differences."""
    path = tmp_path_factory.mktemp("linear") / "facts"
    scoring = ScoringSpec(normalize="none", preconditioner=False)
    build_index(make_spec(sources, scoring=scoring, gradients=GradientSpec(projection_dim=4)), path)
    return AttributionIndex.open(path)


def contrast(**changes: object) -> AttributionQuery:
    return query(PROMPT, A, **{"instead_of": B, "top_k": 40} | changes)


def ask(index: AttributionIndex, asked: AttributionQuery):
    (answer,) = index.attribute([asked])
    if isinstance(answer, Exception):
        raise answer
    return answer


def scores_by_id(rows) -> dict[str, float]:
    return {row.id: row.score for row in rows}


def difference(first: dict[str, float], second: dict[str, float]) -> dict[str, float]:
    return {name: first[name] - second[name] for name in first}


def test_the_row_of_a_contrast_is_the_difference_of_two_rows(opened):
    tokens = tokenize(opened.model.tokenizer, [PROMPT, PROMPT], [A, B], label_end=False)
    rows, losses = collect_rows(opened.collector, tokens, 100)
    (expected,) = opened.search(torch.from_numpy(rows[:1] - rows[1:]), opened.processor, top_k=40)
    answer = ask(opened, contrast())
    assert scores_by_id(answer.results) == pytest.approx(scores_by_id(expected), rel=1e-4, abs=1e-6)
    assert (answer.query.completion, answer.query.instead_of) == (A, B)
    assert (answer.query.loss, answer.query.instead_of_loss) == pytest.approx(losses, rel=1e-5)


def test_the_other_way_round_opponents_are_proponents(opened):
    there = ask(opened, contrast(direction="both"))
    back = ask(opened, query(PROMPT, B, instead_of=A, top_k=40, direction="both"))
    assert [row.id for row in there.opponents] == [row.id for row in back.results]
    swapped = {name: -score for name, score in scores_by_id(back.results).items()}
    assert scores_by_id(there.results) == pytest.approx(swapped, rel=1e-4, abs=1e-6)


def test_a_contrast_beside_other_queries_gets_the_answer_that_it_gets_alone(opened):
    queries = [query(), contrast(), query("Person 1", " lives"), contrast(instead_of=" town.")]
    together = opened.attribute(queries)
    for asked, answer in zip(queries, together, strict=True):
        alone = ask(opened, asked)
        assert scores_by_id(answer.results) == pytest.approx(scores_by_id(alone.results), rel=1e-3, abs=1e-5)
        assert answer.query.instead_of == alone.query.instead_of == asked.instead_of


@pytest.mark.parametrize("rescore", [None, 40])
def test_scores_and_exact_scores_of_a_contrast_are_differences(linear, rescore):
    apart = [
        scores_by_id(ask(linear, query(PROMPT, completion, top_k=40, rescore=rescore)).results)
        for completion in (A, B)
    ]
    answer = ask(linear, contrast(rescore=rescore))
    assert all(row.exact == (rescore is not None) for row in answer.results)
    scale = max(map(abs, apart[0].values()))
    assert scores_by_id(answer.results) == pytest.approx(difference(*apart), abs=1e-4 * scale)


def test_unlearning_is_measured_by_what_it_does_to_the_difference(opened):
    answer = ask(opened, contrast(top_k=3, verify=VerifySpec(top=3, controls=1, learning_rate=1e-3)))
    effects = {row.id: row.verified for row in answer.results}
    locate = {"filter": {"number": [int(name.removeprefix("doc-")) for name in effects]}}
    single = [
        {
            row.id: row.verified
            for row in ask(
                opened,
                query(PROMPT, text, top_k=3, verify=VerifySpec(controls=0, learning_rate=1e-3), **locate),
            ).results
        }
        for text in (A, B)
    ]
    for name, effect in effects.items():
        expected = single[0][name].log_probability - single[1][name].log_probability
        assert effect.log_probability == pytest.approx(expected, rel=1e-2, abs=1e-5)
        assert np.sign(effect.probability) == np.sign(effect.log_probability)


def test_a_contrast_stands_for_the_span(opened):
    completion = " city 1 and works for company 2."
    spanned = ask(opened, query(PROMPT, completion, span=(6, 7), instead_of="4", top_k=40))
    tokens = [
        *tokenize(opened.model.tokenizer, [PROMPT], [completion], [(6, 7)], label_end=False),
        *tokenize(opened.model.tokenizer, [PROMPT], [" city 4"], [(6, 7)], label_end=False),
    ]
    rows, _ = collect_rows(opened.collector, tokens, 100)
    (expected,) = opened.search(torch.from_numpy(rows[:1] - rows[1:]), opened.processor, top_k=40)
    assert scores_by_id(spanned.results) == pytest.approx(scores_by_id(expected), rel=1e-4, abs=1e-6)


def test_a_generated_completion_may_be_contrasted(opened):
    asked = query(PROMPT, A, instead_of=B).model_copy(update={"completion": None, "max_new_tokens": 3})
    answer = ask(opened, asked)
    assert answer.query.generated and answer.query.instead_of == B


def test_what_the_assistant_says_last_may_be_contrasted(tmp_path):
    build_index(chat_spec(save_chat_model(tmp_path / "model", templates.DATED)), tmp_path / "facts")
    index = AttributionIndex.open(tmp_path / "facts")
    chat = [{"role": "user", "content": "Where?"}, {"role": "assistant", "content": "In city 1."}]
    other = [chat[0], {"role": "assistant", "content": "In city 4."}]
    there, back = (
        ask(index, AttributionQuery(messages=said, instead_of=text, top_k=24, direction="both"))
        for said, text in ((chat, "In city 4."), (other, "In city 1."))
    )
    assert [row.id for row in there.results] == [row.id for row in back.opponents]
    assert "In city 4." in there.query.instead_of


def test_a_missing_space_of_the_other_completion_is_told_too(opened):
    answer = ask(opened, query("Person 3 lives", " in", instead_of="works"))
    assert [(w.code, w.suggestion) for w in answer.warnings] == [("missing_space", " works")]
    assert answer.warnings[0].detail.startswith("instead_of: ")
    joined = ask(opened, query("Person 3 lives", "in", instead_of="works", join="space"))
    assert (joined.query.completion, joined.query.instead_of, joined.warnings) == (" in", " works", [])


def test_a_text_that_the_model_almost_never_says_is_told_with_both_means(opened, monkeypatch):
    assert ask(opened, contrast()).warnings == []
    answer = ask(opened, contrast())
    first, second = (
        -loss / len(opened.model.tokenizer(text)["input_ids"])
        for loss, text in ((answer.query.loss, A), (answer.query.instead_of_loss, B))
    )
    monkeypatch.setattr(contrast_warnings, "UNLIKELY_LOG_PROBABILITY", (first + second) / 2)
    (warning,) = ask(opened, contrast()).warnings
    unlikely = "the completion" if first < second else "instead_of"
    assert (warning.code, warning.suggestion) == ("unlikely_contrast", None)
    assert warning.detail.startswith(f"the model almost never says {unlikely}: ")
    assert f"{first:.2f} for the completion and {second:.2f} for instead_of" in warning.detail
    monkeypatch.setattr(contrast_warnings, "UNLIKELY_LOG_PROBABILITY", 0.0)
    (warning,) = ask(opened, contrast()).warnings
    assert "almost never says the completion and instead_of: " in warning.detail
    assert ask(opened, query(PROMPT, A)).warnings == []


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"instead_of": A}, r"^instead_of: expected a text that differs"),
        ({"instead_of": "1", "span": (6, 7)}, r"^instead_of: expected a text that differs"),
        ({"instead_of": ""}, r"^instead_of: "),
    ],
)
def test_what_is_no_contrast_is_refused(changes, message):
    with pytest.raises(InvalidInput, match=message):
        contrast(**changes)


def test_a_chat_whose_last_message_is_no_text_has_no_contrast():
    chat = [{"role": "assistant", "content": None}]
    with pytest.raises(InvalidInput, match=r"^instead_of: it replaces the content of the last message"):
        AttributionQuery(messages=chat, instead_of="In city 4.")


def test_another_text_of_the_same_tokens_is_refused(opened):
    with pytest.raises(InvalidInput, match=r"^instead_of: expected a text that differs"):
        ask(opened, query("Person 3 lives", "in", instead_of=" in", join="space"))


def test_other_completions_without_a_token_of_their_own_are_refused(opened):
    with pytest.raises(InvalidInput, match=r"^instead_of: nothing to attribute"):
        ask(opened, query("", "Person 3", instead_of="P"))


def test_the_corpus_is_scored_with_contrasts(opened):
    queries = [contrast(), query()]
    expected = [
        scores_by_id(ask(opened, asked.model_copy(update={"top_k": 40})).results) for asked in queries
    ]
    columns = {
        "prompt": [asked.prompt for asked in queries],
        "completion": [asked.completion for asked in queries],
        "instead_of": [asked.instead_of for asked in queries],
    }
    for given in (queries, Dataset.from_dict(columns)):
        table = score_corpus(opened, given, aggregate="each").read_all()
        for number, scores in enumerate(expected):
            actual = dict(
                zip(
                    table["id"].to_pylist(), [row[number] for row in table["scores"].to_pylist()], strict=True
                )
            )
            assert actual == pytest.approx(scores, rel=1e-3, abs=1e-5)


@pytest.mark.parametrize("rescore", [None, 40])
def test_a_query_may_be_about_log_odds(linear, rescore):
    tokens = tokenize(linear.model.tokenizer, [PROMPT, PROMPT], [A, B], label_end=False)
    odds = [replace(text, log_odds=True) for text in tokens]
    rows, _ = collect_rows(linear.collector, odds, 100)
    (expected,) = linear.search(torch.from_numpy(rows[:1] - rows[1:]), linear.processor, top_k=40)
    plain, answer = (
        ask(linear, contrast(objective=objective, rescore=rescore))
        for objective in ("log_probability", "log_odds")
    )
    assert scores_by_id(answer.results) != pytest.approx(scores_by_id(plain.results), rel=1e-3)
    assert (answer.query.loss, answer.query.instead_of_loss) == pytest.approx(
        (plain.query.loss, plain.query.instead_of_loss)
    )
    if rescore is None:
        assert scores_by_id(answer.results) == pytest.approx(scores_by_id(expected), rel=1e-4, abs=1e-6)


def test_documents_are_not_scored_with_log_odds(opened):
    with pytest.raises(InvalidInput, match="query 1 has the objective 'log_odds'"):
        score_corpus(opened, [query(), query(objective="log_odds")])
