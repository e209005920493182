"""The sum of the scores of some documents has an interval of its own."""

from pathlib import Path

import pytest

from bergson_core import AttributionIndex, build_index, sum_scores
from bergson_core.errors import BehaviourNotFound, InvalidInput
from bergson_core.schemas.build import GradientSpec, ScoringSpec
from tests.core.helpers import SCORING_CASES, make_spec, query


@pytest.fixture(scope="module")
def opened(index: Path) -> AttributionIndex:
    return AttributionIndex.open(index)


def scores_by_number(opened: AttributionIndex, **changes: object) -> dict[int, float]:
    (answer,) = opened.attribute([query(top_k=40, **changes)])
    return {int(row.id.removeprefix("doc-")): row.score for row in answer.results}


@pytest.mark.parametrize(("rows", "normalize", "preconditioner"), SCORING_CASES)
def test_the_sum_is_that_of_the_scores_of_results(sources, tmp_path, rows, normalize, preconditioner):
    spec = make_spec(
        sources,
        gradients=GradientSpec(projection_dim=4, rows=rows),
        scoring=ScoringSpec(normalize=normalize, preconditioner=preconditioner),
    )
    build_index(spec, tmp_path / "facts", shard_rows=16)
    opened = AttributionIndex.open(tmp_path / "facts")
    numbers = [3, 39, 17, 16, 0]
    scores = scores_by_number(opened)
    total = sum_scores(opened, query(), [*numbers, 17])
    assert total.documents == 5
    assert total.score == pytest.approx(sum(scores[number] for number in numbers), rel=1e-4)
    low, high = total.interval
    assert low < total.score < high


def test_the_interval_of_one_document_is_that_of_its_score(opened):
    (answer,) = opened.attribute([query(top_k=40)])
    last = answer.results[-1]  # of the last rank, so that it was not chosen by its score
    total = sum_scores(opened, query(), [int(last.id.removeprefix("doc-"))])
    assert total.interval == pytest.approx(last.interval, rel=1e-3)


def test_copies_share_their_errors_so_that_these_add_up(sources, tmp_path):
    documents = [{"id": f"doc-{k}", "text": "Person 3 lives in city 2."} for k in range(6)]
    columns = {"prompt": "text", "id": "id"}
    spec = make_spec(sources, dataset=None, documents=documents, columns=columns)
    build_index(spec, tmp_path / "facts")
    copies = AttributionIndex.open(tmp_path / "facts")
    one, all_of_them = sum_scores(copies, query(), [2]), sum_scores(copies, query(), range(6))
    assert all_of_them.interval == pytest.approx([6 * end for end in one.interval], rel=1e-3)


def test_no_documents_have_no_sum_and_unknown_ones_are_refused(opened):
    assert sum_scores(opened, query(), []).interval == (0, 0)
    for number in (-1, 40):
        with pytest.raises(InvalidInput, match=f"no document {number}"):
            sum_scores(opened, query(), [3, number])
    with pytest.raises(BehaviourNotFound):
        sum_scores(opened, {"behaviour": "rude"}, [3])
    with pytest.raises(InvalidInput, match="no profile"):
        sum_scores(opened, query(profile="other"), [3])


def test_rows_that_do_not_show_their_noise_have_a_sum_without_an_interval(sources, tmp_path):
    build_index(make_spec(sources, gradients=GradientSpec(projection_dim=1)), tmp_path / "facts")
    total = sum_scores(AttributionIndex.open(tmp_path / "facts"), query(), [1, 2])
    assert (total.documents, total.interval) == (2, None)
