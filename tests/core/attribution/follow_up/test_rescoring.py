"""Rescoring gives the best candidates the scores of their whole gradients, and says which scores these are."""

import math
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from bergson_core import AttributionIndex, build_index, take_down_document
from bergson_core.attribution.follow_up import rescoring
from bergson_core.errors import InvalidInput
from bergson_core.evaluation.baseline_scores import gradient_scores
from bergson_core.models.language_model import LanguageModel
from bergson_core.models.loading import load_model
from bergson_core.schemas.query import MAX_RESCORED
from bergson_core.schemas.results import Answer, ResultRow
from bergson_core.schemas.source import ColumnsSpec
from bergson_core.tokens.tokenization import tokenize
from bergson_core.utils.background import run_to_completion
from tests import reference, tiny
from tests.core.helpers import (
    CHAT,
    CHAT_TEMPLATE,
    copy_weights,
    make_spec,
    query,
    whole_scores_by_definition,
)

ALL = 40
"""Documents of the fixture index."""


@pytest.fixture(scope="module")
def opened(index: Path) -> AttributionIndex:
    return AttributionIndex.open(index)


def answer_of(opened: AttributionIndex, **changes: object) -> Answer:
    (answer,) = opened.attribute([query(**changes)])
    assert isinstance(answer, Answer), answer
    return answer


def build(sources: Path, path: Path, **changes: object) -> AttributionIndex:
    build_index(make_spec(sources, **changes), path, shard_rows=16)
    return AttributionIndex.open(path)


def in_float64(name: str, revision: str | None = None, dtype: str = "float32") -> LanguageModel:
    return load_model(name, revision, "float64")


def number_of(row: ResultRow) -> int:
    return int(row.id.removeprefix("doc-"))


def scores_by_id(answer: Answer) -> dict[str, float]:
    rows = [*(answer.results or ()), *(answer.opponents or ())]
    return {row.id: row.score for row in rows if row.exact}


@pytest.mark.parametrize(
    ("gradients", "scoring"),
    [
        ({"normalizer": "adafactor", "rows": "float16"}, {"normalize": "row", "preconditioner": True}),
        ({"normalizer": "kfac", "rows": "sign"}, {"normalize": "row", "preconditioner": True}),
        ({"normalizer": "adam", "rows": "int8"}, {"normalize": "none", "preconditioner": False}),
        ({"normalizer": "none", "include_bias": True}, {"normalize": "block", "preconditioner": True}),
    ],
    ids=["adafactor", "kfac", "adam", "none"],
)
def test_scores_of_all_documents_are_those_of_plain_autograd(sources, tmp_path, gradients, scoring):
    gradients = {"projection_dim": 4} | gradients
    build_index(make_spec(sources, gradients=gradients, scoring=scoring), tmp_path / "facts")
    opened = AttributionIndex.open(tmp_path / "facts", load_model=in_float64)
    answer = answer_of(opened, top_k=ALL, rescore=ALL, include=["modules"])
    model, tokenizer = opened.model.model, opened.model.tokenizer
    documents = tokenize(tokenizer, tiny.texts(ALL), None)
    documents += tokenize(tokenizer, [query().prompt], [query().completion])
    model.requires_grad_(True)
    whole = reference.gradients(
        model, list(opened.collector.modules), documents, gradients.get("include_bias", False)
    )
    model.requires_grad_(False)
    normalizers = opened.rescorer.whole_normalizers.processor.normalizers
    normalized = [
        normalizers[name].apply(gradient) if normalizers else gradient for name, gradient in whole.items()
    ]
    rows, query_rows = ([gradient[part].flatten(-2) for gradient in normalized] for part in (slice(ALL), ALL))
    parts = whole_scores_by_definition(rows, query_rows, scoring["normalize"])
    assert [row.rank for row in answer.results] == list(range(1, ALL + 1))
    assert all(row.exact for row in answer.results)
    assert [row.score for row in answer.results] == sorted(
        (row.score for row in answer.results), reverse=True
    )
    for row in answer.results:
        expected = parts[number_of(row)]
        assert row.score == pytest.approx(float(expected.sum()), rel=1e-7, abs=1e-12)
        assert list(row.modules.values()) == pytest.approx(expected.tolist(), rel=1e-7, abs=1e-12)


def test_all_documents_are_in_the_order_of_the_unprojected_baseline(opened):
    answer = answer_of(opened, top_k=ALL, rescore=ALL)
    documents = tokenize(opened.model.tokenizer, tiny.texts(ALL), None)
    queries = tokenize(opened.model.tokenizer, [query().prompt], [query().completion])
    _, (cosines,) = gradient_scores(
        opened.model, documents, queries, list(opened.collector.modules), opened.processor.normalizers
    )
    by_number = {number_of(row): row.score for row in answer.results}
    np.testing.assert_allclose([by_number[number] for number in range(ALL)], cosines, rtol=1e-3, atol=1e-5)
    ordered = cosines[[number_of(row) for row in answer.results]]
    assert (np.diff(ordered) < 1e-5).all()


def test_the_best_candidates_come_first_by_exact_scores_and_the_others_follow_as_they_were(opened):
    plain = answer_of(opened, top_k=12)
    answer = answer_of(opened, top_k=12, rescore=5)
    assert {row.id for row in answer.results[:5]} == {row.id for row in plain.results[:5]}
    assert [row.exact for row in answer.results] == [True] * 5 + [False] * 7
    scores = [row.score for row in answer.results[:5]]
    assert scores == sorted(scores, reverse=True)
    assert scores != [row.score for row in plain.results[:5]]
    assert answer.results[5:] == plain.results[5:]
    assert not any(row.exact for row in plain.results)
    assert (plain.rescored, plain.timing_ms.rescore) == (None, 0)
    assert (answer.rescored.candidates, answer.rescored.exact) == (5, 5)
    timing = answer.timing_ms
    assert timing.rescore > 0
    assert timing.total == pytest.approx(timing.gradient + timing.search + timing.rescore)


def test_results_are_the_best_of_more_candidates_than_are_returned(opened):
    every, few = (answer_of(opened, top_k=top_k, rescore=ALL) for top_k in (ALL, 3))
    assert few.results == every.results[:3]
    assert few.rescored == every.rescored


def test_percentiles_and_the_notice_are_those_of_the_scores_of_the_index(opened):
    plain, answer = (answer_of(opened, top_k=ALL, rescore=rescore) for rescore in (None, ALL))
    assert {row.id: row.percentile for row in answer.results} == {
        row.id: row.percentile for row in plain.results
    }
    assert answer.notice == plain.notice
    assert answer.query == plain.query


@pytest.mark.parametrize("direction", ["opponents", "both"])
def test_each_direction_has_candidates_of_its_own(opened, direction):
    plain = answer_of(opened, direction=direction, top_k=6)
    answer = answer_of(opened, direction=direction, top_k=6, rescore=4)
    assert (answer.results is None) == (direction == "opponents")
    for rows, plain_rows, sign in (
        (answer.results, plain.results, 1),
        (answer.opponents, plain.opponents, -1),
    ):
        if rows is not None:
            assert [row.exact for row in rows] == [True] * 4 + [False] * 2
            assert {row.id for row in rows} == {row.id for row in plain_rows}
            scores = [sign * row.score for row in rows[:4]]
            assert scores == sorted(scores, reverse=True)
    assert answer.rescored.candidates == (8 if direction == "both" else 4)


def test_a_document_that_is_a_candidate_in_both_directions_is_scored_once(opened):
    answer = answer_of(opened, direction="both", top_k=ALL, rescore=ALL)
    assert answer.rescored.candidates == ALL
    assert [row.id for row in answer.opponents] == [
        row.id for row in sorted(answer.opponents, key=lambda row: row.score)
    ]
    assert {row.id: row.score for row in answer.results} == {row.id: row.score for row in answer.opponents}


def test_filters_are_respected(opened):
    answer = answer_of(opened, top_k=ALL, rescore=ALL, filter={"source": "wiki"})
    assert {number_of(row) for row in answer.results} == set(range(1, ALL, 2))
    every = scores_by_id(answer_of(opened, top_k=ALL, rescore=ALL))
    assert scores_by_id(answer) == pytest.approx({row.id: every[row.id] for row in answer.results}, rel=1e-4)


def test_documents_that_were_taken_down_are_never_returned(index, tmp_path):
    path = shutil.copytree(index, tmp_path / "facts")
    opened = AttributionIndex.open(path)
    first = answer_of(opened, rescore=ALL).results[0].id
    take_down_document(path, first)
    assert first not in {row.id for row in answer_of(opened, top_k=ALL, rescore=ALL).results}
    asked = query(top_k=3, rescore=10)
    (found,) = opened.attribute([asked.for_search()])
    second = found.results[1].id
    steps = opened.follow_up(asked, found)
    take_down_document(path, second)
    answer = run_to_completion(steps)
    assert second not in {row.id for row in answer.results}
    assert (answer.rescored.candidates, len(answer.results)) == (9, 3)
    assert [row.rank for row in answer.results] == [1, 2, 3]


@pytest.mark.parametrize("span", [None, (0, 5)])
def test_the_parts_of_tokens_and_modules_sum_to_the_score(opened, span):
    include = ["tokens", "modules"]
    answer = answer_of(opened, top_k=4, rescore=3, include=include, span=span)
    for row in answer.results[:3]:
        assert sum(row.modules.values()) == pytest.approx(row.score, rel=1e-5)
        assert sum(token.influence for token in row.tokens) == pytest.approx(row.score, rel=1e-4)
        text = tiny.texts(ALL)[number_of(row)]
        assert all(text[token.start : token.end] == token.token for token in row.tokens)
        assert row.tokens[-1].influence == 0, "the last token predicts nothing"
    assert answer.results[3].tokens is None
    assert sum(answer.results[3].modules.values()) == pytest.approx(answer.results[3].score, rel=1e-4)
    plain = answer_of(opened, top_k=4, rescore=3, span=span)
    assert (plain.results[0].tokens, plain.results[0].modules) == (None, None)
    assert scores_by_id(plain) == pytest.approx(scores_by_id(answer), rel=1e-5)


def test_a_batch_of_queries_rescores_each_as_it_is_rescored_alone(opened):
    queries = [
        query(rescore=7, top_k=5),
        query("Person 4 lives in", " city 2.", direction="both", rescore=3),
        query("Person 1 works", " for company 1."),
    ]
    together = opened.attribute(queries)
    for asked, answer in zip(queries, together, strict=True):
        (alone,) = opened.attribute([asked])
        assert [row.id for row in answer.results] == [row.id for row in alone.results]
        assert scores_by_id(answer) == pytest.approx(scores_by_id(alone), rel=1e-4)
    assert together[2].rescored is None


def test_the_same_query_has_the_same_answer(opened):
    first, second = (answer_of(opened, rescore=20, top_k=20) for _ in range(2))
    assert first.results == second.results


def test_loss_means_completions_and_weights_count_as_in_the_index(sources, tmp_path):
    documents = tuple(
        {"q": f"city {k} is", "a": f" number {k * 7}", "w": (-2.0, 0.0, 1.0, 0.5)[k % 4]} for k in range(8)
    )
    opened = build(
        sources,
        tmp_path / "facts",
        dataset=None,
        documents=documents,
        columns=ColumnsSpec(prompt="q", completion="a", weight="w"),
        gradients={"projection_dim": 4, "loss": "mean"},
        scoring={"normalize": "none", "preconditioner": False},
    )
    answer = answer_of(opened, prompt="city 3 is", completion=" number 21", top_k=8, rescore=8)
    tokenizer = opened.model.tokenizer
    texts, weights = (
        [[document[name] for document in documents] for name in ("q", "a")],
        [-2.0, 0.0, 1.0, 0.5] * 2,
    )
    tokens = [
        replace(document, weight=weight / document.n_labelled)
        for document, weight in zip(tokenize(tokenizer, *texts), weights, strict=True)
    ]
    (asked,) = tokenize(tokenizer, ["city 3 is"], [" number 21"], label_end=False)
    asked = replace(asked, weight=1 / asked.n_labelled)
    (dots,), _ = gradient_scores(
        opened.model, tokens, [asked], list(opened.collector.modules), opened.processor.normalizers
    )
    scores = {int(row.id): row.score for row in answer.results}
    np.testing.assert_allclose([scores[k] for k in range(8)], dots, rtol=1e-3, atol=1e-4 * abs(dots).max())
    assert scores[1] == scores[5] == 0


def test_chats_are_rendered_as_in_the_build(sources, tmp_path):
    model_dir = shutil.copytree(sources / "model", tmp_path / "model")
    (model_dir / "chat_template.jinja").write_text(CHAT_TEMPLATE)
    chats = tuple(
        {"messages": [*CHAT[:3], {"role": "assistant", "content": f"company {k}."}]} for k in range(5)
    )
    opened = build(
        sources,
        tmp_path / "facts",
        model=str(model_dir),
        dataset=None,
        documents=chats,
        columns=ColumnsSpec(messages="messages"),
    )
    answer = opened.query(messages=chats[2]["messages"], rescore=5, include=["text", "tokens"], top_k=5)
    assert all(row.exact for row in answer.results)
    assert (answer.results[0].id, answer.results[0].score) == ("2", pytest.approx(1, rel=1e-5))
    for row in answer.results:
        assert sum(token.influence for token in row.tokens) == pytest.approx(row.score, rel=1e-4)


def test_documents_in_chunks_compose_with_results_grouped_by_document(sources, tmp_path):
    documents = tuple({"text": "Person 3 lives in city 1. " * 30 + f"And {k}."} for k in range(3))
    opened = build(
        sources,
        tmp_path / "facts",
        dataset=None,
        documents=documents,
        columns=ColumnsSpec(),
        long_documents="chunk",
    )
    answer = answer_of(opened, top_k=3, rescore=3, group_by="document")
    assert sorted(row.chunk.document for row in answer.results) == ["0", "1", "2"]
    assert all(row.exact for row in answer.results)
    every = answer_of(opened, top_k=50, rescore=50)
    assert len(every.results) > 3
    assert all(row.exact and row.chunk for row in every.results)


def test_embeddings_count_where_the_index_tracks_them(sources, tmp_path):
    gradients = {"projection_dim": 4, "normalizer": "kfac", "modules": "embed_in|dense$"}
    opened = build(sources, tmp_path / "facts", gradients=gradients)
    answer = answer_of(opened, top_k=4, rescore=4, include=["modules"])
    assert all(row.modules["gpt_neox.embed_in"] != 0 for row in answer.results)


def test_verification_unlearns_the_results_in_their_new_order(opened):
    verify = {"top": 2, "controls": 1}
    answer = answer_of(opened, top_k=5, rescore=ALL, verify=verify)
    assert [row.id for row in answer.results] == [
        row.id for row in answer_of(opened, top_k=5, rescore=ALL).results
    ]
    assert [row.verified is not None for row in answer.results] == [True, True, False, False, False]
    timing = answer.timing_ms
    assert min(timing.rescore, timing.verify) > 0
    assert timing.total == pytest.approx(timing.gradient + timing.search + timing.rescore + timing.verify)


def test_other_queries_are_answered_between_steps_and_the_work_may_be_given_up(opened):
    asked, before = query(rescore=ALL, top_k=ALL), copy_weights(opened.model.model)
    (found,) = opened.attribute([asked.for_search()])
    expected = answer_of(opened, rescore=ALL, top_k=ALL)
    seen: list[bool] = []

    def answer_another() -> None:
        other = answer_of(opened, prompt="Person 1 works", rescore=2)
        weights = copy_weights(opened.model.model)
        seen.append(
            other.rescored.exact == 2 and all(torch.equal(weights[name], before[name]) for name in before)
        )

    answer = run_to_completion(opened.follow_up(asked, found), answer_another)
    assert len(seen) >= 4 and all(seen)
    assert answer.results == expected.results
    given_up = opened.follow_up(asked, found)
    next(given_up)
    given_up.close()
    assert not any(module._forward_hooks for module in opened.model.model.modules())
    assert answer_of(opened, rescore=ALL, top_k=ALL).results == expected.results


class Clock:
    """A clock that a pass through the model sets forward by a second for each token."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 0.0
        scorer = rescoring.WholeGradientScorer
        clock = self

        class SlowScorer(scorer):
            def __init__(self, model, processor, modules, asked, *arguments, **options):
                clock.now += sum(len(text.ids) for text in asked)
                super().__init__(model, processor, modules, asked, *arguments, **options)

            def score(self, batch):
                clock.now += batch.input_ids.numel()
                return super().score(batch)

        monkeypatch.setattr(rescoring, "WholeGradientScorer", SlowScorer)
        monkeypatch.setattr(rescoring.time, "time", lambda: self.now)
        monkeypatch.setattr(rescoring.time, "perf_counter", lambda: self.now)


def test_what_the_time_leaves_unscored_keeps_the_score_of_the_index_behind_the_exact_ones(
    opened, monkeypatch
):
    asked = query(rescore=ALL, top_k=ALL)
    (found,) = opened.attribute([asked.for_search()])
    plain = [row.id for row in found.results]
    every = scores_by_id(answer_of(opened, rescore=ALL, top_k=ALL))
    clock = Clock(monkeypatch)
    counts = set()
    for until in (0, 5, 60, 100, 200, 400, 900, math.inf):
        clock.now = 0.0
        answer = run_to_completion(opened.follow_up(asked, found, rescore_until=until))
        assert clock.now <= until or until == 5, "no pass is begun that would end too late, but for the first"
        count = answer.rescored.exact
        counts.add(count)
        assert answer.rescored.candidates == ALL
        assert [row.exact for row in answer.results] == [True] * count + [False] * (ALL - count)
        others = [row.id for row in answer.results[count:]]
        assert others == [document_id for document_id in plain if document_id in others]
        assert scores_by_id(answer) == pytest.approx(
            {name: every[name] for name in scores_by_id(answer)}, rel=1e-4
        )
        assert len({row.id for row in answer.results}) == ALL
        if 0 < count < 12:
            assert set(plain[:4]) & set(scores_by_id(answer)), "the best are scored first"
    assert {0, ALL} < counts
    assert len(counts) >= 4


def test_an_index_of_a_training_run_is_refused(index):
    opened = AttributionIndex.open(index)
    opened.rescorer._manifest = opened.manifest.model_copy(update={"origin": "training"})
    refused, plain = opened.attribute([query(rescore=3), query()])
    assert isinstance(refused, InvalidInput)
    assert "leave `rescore` out" in str(refused)
    assert isinstance(plain, Answer)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"rescore": 0}, "expected at least 1"),
        ({"rescore": MAX_RESCORED + 1}, "expected at most 1000"),
        ({"rescore": "3"}, "expected a number"),
        ({"rescore": True}, "expected a number"),
        ({"rescore": 5, "profile": "facts"}, "expected the profile 'default', got 'facts'"),
        ({"rescore": 40, "include": ["tokens"], "top_k": 33}, "a top_k of at most 32"),
    ],
)
def test_what_rescore_may_be_is_checked(fields, message):
    with pytest.raises(InvalidInput, match=message):
        query(**fields)


def test_the_search_for_candidates_has_no_follow_up_of_its_own():
    asked = query(rescore=50, top_k=5, include=["text", "tokens", "modules"], verify={"top": 1})
    assert asked.has_follow_up
    search = asked.for_search()
    assert not search.has_follow_up
    assert (search.top_k, search.include) == (50, ("text", "modules"))
    plain = query(top_k=5, include=["tokens"])
    assert plain.for_search() == plain


def test_rescored_candidates_count_as_calls_by_32():
    for rescore, direction, calls in (
        (1, "proponents", 1),
        (32, "both", 2),
        (33, "opponents", 2),
        (None, "both", 0),
    ):
        assert query(rescore=rescore, direction=direction).extra_calls == calls
    assert query(rescore=64, verify={"top": 3, "controls": 2}).extra_calls == 2 + 5


def test_query_of_an_open_index_takes_rescore(opened):
    answer = opened.query(query().prompt, query().completion, rescore=5, top_k=2)
    assert [row.exact for row in answer.results] == [True, True]
    assert Answer.model_validate_json(answer.model_dump_json()) == answer
