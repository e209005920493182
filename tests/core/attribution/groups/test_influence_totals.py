"""Totals are the sums of the scores of all documents by a metadata column, and each sum has an interval."""

import math
from pathlib import Path

import pytest

from bergson_core import (
    AttributionIndex,
    ScoreTotals,
    build_index,
    influence_totals,
    score_corpus,
    sum_scores,
)
from bergson_core.attribution.groups.influence_totals import total_influence
from bergson_core.errors import BehaviourNotFound, InvalidInput, TooLong
from bergson_core.schemas.build import GradientSpec, ScoringSpec
from bergson_core.schemas.totals.results import InfluenceTotals
from bergson_core.schemas.totals.spec import TotalsSpec
from bergson_core.storage.document_lookup import take_down_document
from tests.core.helpers import SCORING_CASES, make_spec, query

QUESTION = {"prompt": query().prompt, "completion": query().completion}


@pytest.fixture(scope="module")
def opened(index: Path) -> AttributionIndex:
    return AttributionIndex.open(index)


def totals(opened: AttributionIndex, by: str = "source", **changes: object) -> InfluenceTotals:
    return influence_totals(opened, QUESTION | {"by": by, "threshold": 0} | changes)


def answered_scores(opened: AttributionIndex, **changes: object) -> list[tuple[object, str, float]]:
    """Returns the source, the id and the score of each document, as a query returns them."""
    (answer,) = opened.attribute([query(top_k=40, **changes)])
    return [((row.metadata or {})["source"], row.id, row.score) for row in answer.results]


@pytest.mark.parametrize(("rows", "normalize", "preconditioner"), SCORING_CASES)
def test_sums_without_a_threshold_are_those_of_all_scores_in_float64(
    sources, tmp_path, rows, normalize, preconditioner
):
    spec = make_spec(
        sources,
        gradients=GradientSpec(projection_dim=4, rows=rows),
        scoring=ScoringSpec(normalize=normalize, preconditioner=preconditioner),
    )
    build_index(spec, tmp_path / "facts", shard_rows=16)
    opened = AttributionIndex.open(tmp_path / "facts")
    scores = answered_scores(opened)
    found = totals(opened)
    assert found.group_count == len(found.groups) == len({source for source, *_ in scores})
    assert [group.sum for group in found.groups] == sorted((g.sum for g in found.groups), reverse=True)
    scale = math.fsum(abs(score) for *_, score in scores)
    for group in found.groups:
        of_group = [score for source, _, score in scores if source == group.value]
        assert group.documents == len(of_group)
        assert group.sum == pytest.approx(math.fsum(of_group), abs=1e-5 * scale)
        assert group.mean == pytest.approx(group.sum / group.documents)
        low, high = group.interval
        assert low < group.sum < high
    assert found.documents == 40
    assert found.sum == pytest.approx(math.fsum(score for *_, score in scores), abs=1e-5 * scale)


def test_the_interval_of_a_group_is_that_of_the_sum_of_its_documents(opened):
    scores = answered_scores(opened)
    for group in totals(opened).groups:
        numbers = [int(name.removeprefix("doc-")) for source, name, _ in scores if source == group.value]
        assert group.interval == pytest.approx(sum_scores(opened, query(), numbers).interval, rel=1e-3)


@pytest.mark.parametrize("threshold", [0.5, 1, 3])
def test_with_a_threshold_they_are_those_that_score_prints(opened, threshold):
    printed = ScoreTotals(opened, "source")
    printed.add(score_corpus(opened, [query()], threshold=threshold)).read_all()
    found = totals(opened, threshold=threshold)
    assert found.threshold == threshold
    for row, group in zip(printed.table().to_pylist(), found.groups, strict=True):
        assert (row["value"], row["documents"]) == (group.value, group.documents)
        assert row["sum"] == pytest.approx(group.sum, abs=1e-5)


def test_the_interval_behind_a_threshold_is_as_wide_as_that_of_the_documents_beyond_it(opened):
    table = score_corpus(opened, [query()], threshold=1).read_all()
    beyond = [int(row["id"].removeprefix("doc-")) for row in table.to_pylist() if row["score"]]
    assert 0 < len(beyond) < 40
    found = totals(opened, threshold=1)
    sources = {name: source for source, name, _ in answered_scores(opened)}
    for group in found.groups:
        numbers = [number for number in beyond if sources[f"doc-{number}"] == group.value]
        low, high = group.interval
        expected = sum_scores(opened, query(), numbers)
        assert high - low == pytest.approx(expected.interval[1] - expected.interval[0], rel=1e-3)


def test_a_group_of_which_nothing_lies_beyond_the_threshold_has_no_interval(opened):
    found = totals(opened, threshold=100)
    assert [(group.sum, group.interval) for group in found.groups] == [(0, None)] * len(found.groups)
    assert found.documents == 40


def test_only_documents_that_meet_the_filter_count(opened):
    wanted = {name: score for _, name, score in answered_scores(opened, filter={"number": {"lt": 3}})}
    found = totals(opened, filter={"number": {"lt": 3}})
    assert 0 < found.documents == len(wanted) < 40
    assert found.sum == pytest.approx(sum(wanted.values()), abs=1e-4)
    nothing = totals(opened, filter={"source": "no such source"})
    assert (nothing.groups, nothing.group_count, nothing.documents, nothing.sum) == ([], 0, 0, 0)


def test_a_document_that_is_taken_down_does_not_count(sources, tmp_path):
    build_index(make_spec(sources), tmp_path / "facts", shard_rows=16)
    opened = AttributionIndex.open(tmp_path / "facts")
    before, (_, best, score) = totals(opened), answered_scores(opened)[0]
    take_down_document(tmp_path / "facts", best)
    after = totals(opened)
    assert after.documents == before.documents - 1
    assert after.sum == pytest.approx(before.sum - score, abs=1e-4)


def test_top_bounds_the_groups_and_all_of_them_are_counted(opened):
    every, few = totals(opened, "number", top=100), totals(opened, "number", top=2)
    assert few.groups == every.groups[:2]
    assert few.group_count == every.group_count == len(every.groups) > 2
    assert (few.documents, few.sum) == (every.documents, every.sum)


def test_a_behaviour_and_the_difference_of_two_have_totals(sources, tmp_path):
    build_index(make_spec(sources), tmp_path / "facts")
    opened = AttributionIndex.open(tmp_path / "facts")
    opened.behaviours.create("one", [QUESTION])
    opened.behaviours.create("other", [QUESTION | {"completion": " nowhere"}])
    single = {group.value: group.sum for group in totals(opened).groups}
    question = {"by": "source", "threshold": 0, "behaviour": "one"}
    kept = influence_totals(opened, question)
    assert kept.query.behaviour == "one"
    for group in kept.groups:
        assert group.sum == pytest.approx(single[group.value], abs=2e-2)
        assert group.interval is not None and group.interval[0] < group.sum < group.interval[1]
    difference = influence_totals(opened, question | {"instead_of_behaviour": "other"})
    other = influence_totals(opened, question | {"behaviour": "other"})
    assert difference.sum == pytest.approx(kept.sum - other.sum, abs=1e-3)
    with pytest.raises(BehaviourNotFound):
        influence_totals(opened, question | {"behaviour": "third"})


def test_a_contrast_has_the_totals_of_its_scores(opened):
    scores = answered_scores(opened, instead_of=" nowhere")
    found = totals(opened, instead_of=" nowhere")
    assert found.query.instead_of == " nowhere"
    assert found.sum == pytest.approx(math.fsum(score for *_, score in scores), abs=1e-4)


def test_rows_that_do_not_show_their_noise_have_sums_without_intervals(sources, tmp_path):
    build_index(make_spec(sources, gradients=GradientSpec(projection_dim=1)), tmp_path / "facts")
    found = totals(AttributionIndex.open(tmp_path / "facts"))
    assert [group.interval for group in found.groups] == [None] * len(found.groups)


def test_the_work_is_divided_into_steps_and_its_time_is_that_of_the_steps(opened):
    question = query(top_k=1, include=())
    (answer,) = opened.attribute([question])
    steps = total_influence(opened, question, answer, TotalsSpec(by="source"))
    assert len([*steps]) > 3
    found = totals(opened)
    assert found.timing_ms.search > answer.timing_ms.search
    assert found.timing_ms.total >= found.timing_ms.search


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"by": "author"}, "no metadata column 'author'; it has source, number"),
        ({"by": ""}, "by: "),
        ({"top": 0}, "top: "),
        ({"top": 101}, "top: "),
        ({"threshold": -1}, "threshold: "),
        ({"threshold": math.nan}, "threshold: "),
        ({"top_k": 3}, "top_k"),
        ({"verify": {}}, "verify"),
        ({"instead_of": QUESTION["completion"]}, "instead_of: expected a text that differs"),
        ({"behaviour": "one"}, "prompt: the behaviour has its own queries"),
        ({"filter": {"author": "x"}}, "no metadata column 'author'"),
        ({"profile": "other"}, "no profile"),
        ({"span": [3, 1]}, "span: "),
        ({"prompt": None}, "prompt: expected a prompt"),
    ],
)
def test_a_wrong_field_is_refused_by_its_name(opened, change, message):
    with pytest.raises(InvalidInput, match=message):
        totals(opened, **change)


def test_a_question_that_is_too_long_is_refused(opened):
    with pytest.raises(TooLong):
        totals(opened, prompt="word " * 5000)
