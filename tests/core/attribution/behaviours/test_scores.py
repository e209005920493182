"""The score of a behaviour is the mean of its queries' scores, less that of its control set, under every profile."""

import numpy as np
import pytest
import torch

from bergson_core import AttributionIndex, append_documents, build_index, fit_profile, score_behaviour
from bergson_core.errors import InvalidInput
from bergson_core.schemas.build import AppendSpec, GradientSpec, ScoringSpec
from bergson_core.storage.document_lookup import take_down_document
from tests.core.attribution.queries.test_chat_queries import chat_spec, save_chat_model
from tests.core.helpers import CHAT, SCORING_CASES, make_spec, query, scores_by_definition
from tests.core.tokens import chat_templates as templates

QUERIES = [{"prompt": f"Person {k} lives in", "completion": f" city {k % 3}."} for k in range(5)]
CONTROL = [{"prompt": f"Person {k} works", "completion": f" for company {k % 3}."} for k in range(3)]


def as_queries(fields):
    return [query(**each) for each in fields]


def scores_of(index: AttributionIndex, **changes: object) -> dict[str, float]:
    """Returns the scores of all documents in the answer to a query, by id."""
    answer = index.query(**({"top_k": 100} | changes))
    return {row.id: row.score for row in answer.results}


def mean_scores(index: AttributionIndex, fields, **changes: object) -> dict[str, float]:
    """Returns the mean over queries of the scores in their answers, by id."""
    each = [scores_of(index, **query_fields, **changes) for query_fields in fields]
    return {name: float(np.mean([scores[name] for scores in each])) for name in each[0]}


def difference(first: dict[str, float], second: dict[str, float]) -> dict[str, float]:
    assert first.keys() == second.keys()
    return {name: first[name] - second[name] for name in first}


def close(expected: dict[str, float], share: float = 2e-3):
    return pytest.approx(expected, rel=0, abs=share * max(map(abs, expected.values())))


@pytest.fixture
def opened(index_copy) -> AttributionIndex:
    opened = AttributionIndex.open(index_copy)
    opened.behaviours.create("living", QUERIES, CONTROL)
    return opened


@pytest.mark.parametrize(("rows", "normalize", "preconditioner"), SCORING_CASES)
def test_scores_are_those_of_the_definition(sources, tmp_path, rows, normalize, preconditioner):
    spec = make_spec(
        sources,
        gradients=GradientSpec(projection_dim=4, rows=rows),
        scoring=ScoringSpec(normalize=normalize, preconditioner=preconditioner),
    )
    path = tmp_path / "facts"
    build_index(spec, path, shard_rows=16)
    index = AttributionIndex.open(path)
    index.behaviours.create("living", QUERIES, CONTROL)
    actual = torch.tensor(
        score_behaviour(index, "living").read_all()["score"].to_pylist(), dtype=torch.float64
    )
    answered = scores_of(index, behaviour="living")
    scale = actual.abs().max().item()
    assert [answered[f"doc-{k}"] for k in range(40)] == pytest.approx(actual.tolist(), abs=1e-4 * scale)
    if (rows, normalize) == ("sign", "row"):  # a case that `scores_by_definition` does not cover
        expected = difference(mean_scores(index, QUERIES), mean_scores(index, CONTROL))
        assert answered == close(expected)
        return
    means = [
        torch.stack([scores_by_definition(path, spec, each) for each in as_queries(fields)]).mean(0)
        for fields in (QUERIES, CONTROL)
    ]
    share = 2e-2 if rows == "int8" else 3e-3
    torch.testing.assert_close(actual, means[0] - means[1], rtol=0, atol=share * scale)


def test_a_behaviour_without_a_control_set_has_the_mean_score(opened):
    opened.behaviours.create("alone", QUERIES)
    assert scores_of(opened, behaviour="alone") == close(mean_scores(opened, QUERIES))


def test_a_behaviour_is_answered_under_a_profile_that_was_fitted_after_it(opened, index_copy, sample):
    fit_profile(index_copy, "task", sample, mixing=0.5)
    index = AttributionIndex.open(index_copy)
    expected = difference(*(mean_scores(index, fields, profile="task") for fields in (QUERIES, CONTROL)))
    assert scores_of(index, behaviour="living", profile="task") == close(expected)
    assert scores_of(index, behaviour="living") != close(expected)


def test_one_behaviour_less_another_has_the_difference_of_their_scores(opened):
    opened.behaviours.create("working", CONTROL)
    expected = difference(*(scores_of(opened, behaviour=name) for name in ("living", "working")))
    assert scores_of(opened, behaviour="living", instead_of_behaviour="working") == close(expected)
    scored = score_behaviour(opened, "living", instead_of="working").read_all()
    by_id = dict(zip(scored["id"].to_pylist(), scored["score"].to_pylist(), strict=True))
    assert by_id == close(expected)
    answer = opened.query(behaviour="living", instead_of_behaviour="working", top_k=1)
    assert (answer.query.behaviour, answer.query.instead_of_behaviour) == ("living", "working")
    assert answer.query.instead_of_loss == pytest.approx(opened.behaviours.get("working").loss)


@pytest.mark.parametrize(
    "fields",
    [
        {"prompt": "Person 3 lives in", "completion": " city 1.", "instead_of": " city 4 and works"},
        {"prompt": "Person 3 lives in", "completion": " city 1 and works.", "span": (6, 7)},
        {"prompt": "Person 3 lives in", "completion": "city 1.", "join": "space"},
        {"prompt": "Person 3 lives in", "completion": " city 1.", "objective": "log_odds"},
    ],
    ids=["a contrast", "a span", "a joined completion", "log-odds"],
)
def test_a_behaviour_of_one_query_has_the_scores_of_that_query(opened, fields):
    opened.behaviours.create("one", [fields])
    assert scores_of(opened, behaviour="one") == close(scores_of(opened, **fields))
    answer, alone = opened.query(behaviour="one", top_k=5), opened.query(**fields, top_k=5)
    assert [row.percentile for row in answer.results] == [row.percentile for row in alone.results]
    assert answer.query.loss == pytest.approx(alone.query.loss, rel=1e-4)
    assert answer.query.n_tokens == alone.query.n_tokens


def test_chats_and_texts_may_be_queries_of_one_behaviour(tmp_path):
    path = tmp_path / "chats"
    build_index(chat_spec(save_chat_model(tmp_path, templates.CHATML)), path)
    index = AttributionIndex.open(path)
    text = {"prompt": "Person 3", "completion": " lives"}
    index.behaviours.create("mixed", [{"messages": CHAT}, text])
    expected = mean_scores(index, [{"messages": CHAT}, text])
    assert scores_of(index, behaviour="mixed") == close(expected)


def test_a_behaviour_goes_with_filters_directions_and_the_parts_of_scores(opened):
    everything = scores_of(opened, behaviour="living")
    condition = {"number": {"lt": 12}}
    answer = opened.query(
        behaviour="living",
        filter=condition,
        direction="both",
        include=("text", "metadata", "tokens", "modules"),
        top_k=12,
    )
    allowed = {name: score for name, score in everything.items() if int(name.removeprefix("doc-")) < 12}
    assert {row.id: row.score for row in answer.results} == close(allowed)
    assert [row.id for row in answer.opponents] == [row.id for row in reversed(answer.results)]
    for row in answer.results:
        assert sum(row.modules.values()) == pytest.approx(row.score, abs=1e-5)
        assert sum(token.influence for token in row.tokens) == pytest.approx(row.score, abs=1e-5)
        assert row.prompt and row.metadata
    assert answer.notice is None
    assert (answer.query.prompt, answer.query.completion, answer.query.generated) == (None, None, False)


def test_behaviours_beside_queries_in_a_batch_get_the_answers_that_they_get_alone(opened):
    opened.behaviours.create("working", CONTROL)
    asked = [
        query(top_k=40),
        query(None, None, behaviour="living", top_k=40),
        query("Person 1", " lives", top_k=40),
        query(None, None, behaviour="nothing"),
        query(None, None, behaviour="working", top_k=40),
    ]
    answers = opened.attribute(asked)
    assert "it has living, working" in str(answers[3])
    for each, answer in zip(asked, answers, strict=True):
        if each.behaviour != "nothing":
            (alone,) = opened.attribute([each])
            assert [row.id for row in answer.results] == [row.id for row in alone.results]


def test_a_behaviour_finds_documents_that_were_appended_after_it_and_none_that_were_taken_down(
    opened, index_copy
):
    added = {"id": "new", "text": "Person 3 lives in city 1.", "source": "x", "number": 99}
    append_documents(index_copy, AppendSpec(documents=(added,)))
    take_down_document(index_copy, "doc-3")
    index = AttributionIndex.open(index_copy)
    expected = difference(mean_scores(index, QUERIES), mean_scores(index, CONTROL))
    actual = scores_of(index, behaviour="living")
    assert actual == close(expected)
    assert "new" in actual and "doc-3" not in actual
    assert index.behaviours.get("living").generation == 1 < index.manifest.generation


def test_a_behaviour_that_is_created_anew_is_not_answered_from_what_was_computed_before(opened):
    before = scores_of(opened, behaviour="living")
    opened.behaviours.delete("living")
    opened.behaviours.create("living", CONTROL, QUERIES)
    assert scores_of(opened, behaviour="living") == close({name: -score for name, score in before.items()})


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"prompt": "x"}, "prompt: the behaviour has its own queries"),
        ({"messages": CHAT}, "messages: the behaviour has its own queries"),
        ({"instead_of": " x"}, "instead_of_behaviour"),
        ({"span": (0, 1)}, "span: the spans"),
        ({"rescore": 10}, "rescore: a behaviour is kept as rows"),
        ({"verify": {"top": 1}}, "verify: a behaviour is no single text"),
        ({"objective": "log_odds"}, "objective"),
        ({"order": "words"}, "order: a behaviour has no words"),
        ({"include": ("text", "words")}, "include: a behaviour has no words"),
        ({"join": "space"}, "join"),
        ({"instead_of_behaviour": "living"}, "every score would be 0"),
        ({"behaviour": None, "instead_of_behaviour": "living"}, "expected also `behaviour`, got none"),
        ({"behaviour": "../living"}, "behaviour"),
    ],
)
def test_what_does_not_go_with_a_behaviour_is_refused(opened, fields, message):
    with pytest.raises(InvalidInput, match=message):
        opened.query(**({"behaviour": "living"} | fields))
