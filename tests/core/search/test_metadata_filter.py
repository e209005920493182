"""A filter restricts a search to the rows whose metadata meet its conditions."""

import pytest
import torch

from bergson_core import AttributionIndex, AttributionQuery, build_index
from bergson_core.errors import InvalidInput
from bergson_core.schemas.build import GradientSpec, SearchSpec
from bergson_core.schemas.filters import Range
from bergson_core.search import local_searcher
from bergson_core.search.metadata_filter import matches_condition
from tests import tiny
from tests.core.helpers import make_spec, query

DOCUMENTS = 300
KINDS = {
    "float16": {},
    "rabitq": {"search": SearchSpec(kind="rabitq", min_recall=0.01)},
    "hamming": {
        "gradients": GradientSpec(projection_dim=4, rows="sign"),
        "search": SearchSpec(min_recall=0.01),
    },
}


@pytest.fixture(scope="module")
def indexes(tmp_path_factory):
    """Indexes of the same 300 documents, one for each way to find candidates."""
    root = tmp_path_factory.mktemp("filtered")
    tiny.save_model(root / "model")
    tiny.save_documents(root / "documents.jsonl", DOCUMENTS)
    for kind, changes in KINDS.items():
        assert build_index(make_spec(root, **changes), root / kind, shard_rows=110).search.kind == kind
    return {kind: AttributionIndex.open(root / kind) for kind in KINDS}


def scores_by_id(index: AttributionIndex, **changes: object) -> dict[str, float]:
    (answer,) = index.attribute([query(**changes)])
    assert not isinstance(answer, Exception), answer
    return {row.id: row.score for row in answer.opponents or answer.results}


@pytest.mark.parametrize(
    "exact", [True, False], ids=["every matching row is scored", "FAISS skips the others"]
)
@pytest.mark.parametrize("direction", ["proponents", "opponents"])
@pytest.mark.parametrize("kind", KINDS)
def test_the_best_matching_rows_are_found_with_their_scores(indexes, monkeypatch, kind, direction, exact):
    index = indexes[kind]
    monkeypatch.setattr(local_searcher, "_EXACT_SEARCH_FACTOR", 10 if exact else 0)
    all_scores = scores_by_id(index, top_k=DOCUMENTS, direction=direction)
    condition = {"source": "wiki", "number": {"gte": 51, "lt": 251}}
    expected = {
        key: score for key, score in all_scores.items() if is_wiki(key) and 51 <= number_of(key) < 251
    }
    assert len(expected) == 100
    best_five = scores_by_id(index, top_k=5, direction=direction, filter=condition)
    assert len(best_five) == 5
    assert all(score == pytest.approx(expected[key], abs=1e-5) for key, score in best_five.items())
    highest = sorted(expected.values(), reverse=direction == "proponents")[:5]
    if exact:
        assert list(best_five.values()) == pytest.approx(highest, abs=1e-5)
    every_match = scores_by_id(index, top_k=DOCUMENTS, direction=direction, filter=condition)
    assert every_match == pytest.approx(expected, abs=1e-5)


def is_wiki(key: str) -> bool:
    return number_of(key) % 2 == 1


def number_of(key: str) -> int:
    return int(key.removeprefix("doc-"))


def test_queries_in_one_batch_keep_their_own_filters(indexes):
    queries = [query(filter={"number": number}) for number in (7, 8, 7)] + [query(top_k=1)]
    answers = indexes["float16"].attribute(queries)
    assert [[row.id for row in answer.results] for answer in answers[:3]] == [["doc-7"], ["doc-8"], ["doc-7"]]
    assert len(answers[3].results) == 1


def test_a_filter_that_no_document_meets_gives_no_results(indexes):
    for index in indexes.values():
        (answer,) = index.attribute([query(filter={"source": "books"}, direction="both")])
        assert (answer.results, answer.opponents) == ([], [])


def test_an_unknown_column_fails_only_the_query_that_names_it(indexes):
    good, bad = indexes["float16"].attribute([query(), query(filter={"year": 1990})])
    assert good.results
    assert isinstance(bad, InvalidInput)
    assert "no metadata column 'year'; it keeps source, number" in str(bad)


def test_gradients_made_elsewhere_are_filtered_too(indexes):
    index = indexes["float16"]
    rows = torch.randn(2, index.collector.dimensions)
    for results in index.search(rows, index.processor, filter={"number": [3, 4]}):
        assert {row.id for row in results} == {"doc-3", "doc-4"}


@pytest.mark.parametrize(
    ("value", "condition", "expected"),
    [
        ("wiki", "wiki", True),
        ("wiki", ("web", "wiki"), True),
        (None, None, True),
        (None, ("web", None), True),
        ("wiki", None, False),
        (1, 1.0, True),
        (True, 1, False),
        (1, True, False),
        (["a", "b"], "b", True),
        (["a", "b"], ("c",), False),
        (5, Range(gte=5, lt=6), True),
        (5, Range(gt=5), False),
        ("2024-05-01", Range(gte="2024", lt="2025"), True),
        ("5", Range(gte=1), False),
        (True, Range(gte=0), False),
        (None, Range(lte=3), False),
    ],
)
def test_conditions_mean_what_they_say(value, condition, expected):
    assert matches_condition(value, condition) is expected


@pytest.mark.parametrize(
    "condition", [{}, {"gte": 1, "lt": "2"}, {"above": 3}, {"gte": None}, {"lt": float("nan")}], ids=str
)
def test_a_range_that_makes_no_sense_is_refused(condition):
    with pytest.raises(ValueError, match="filter"):
        AttributionQuery.model_validate(
            {"index": "facts", "prompt": "a", "completion": "b", "filter": {"number": condition}}
        )
