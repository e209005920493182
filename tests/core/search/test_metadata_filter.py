"""A filter restricts a search to the rows whose metadata meet its conditions."""

import re
from typing import Any

import pytest
import torch
from pydantic import TypeAdapter

from bergson_core import AttributionIndex, AttributionQuery, build_index
from bergson_core.errors import InvalidInput
from bergson_core.schemas.build import GradientSpec, SearchSpec
from bergson_core.schemas.filters import Condition, Range
from bergson_core.search import candidates
from bergson_core.search.metadata_filter import MetadataFilter
from bergson_core.search.searcher import SearchRequest
from tests import tiny
from tests.core.helpers import make_metadata_shards, make_spec, query

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
    monkeypatch.setattr(candidates, "_EXACT_SEARCH_FACTOR", 10 if exact else 0)
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


def matching_values(values: list[Any], condition: Any) -> list[Any]:
    """Returns those of the values of a metadata column that meet the condition, where it is asked for."""
    shards, manifest = make_metadata_shards([{"column": value} for value in values])
    conditions = TypeAdapter(dict[str, Condition]).validate_python({"column": condition})
    metadata = MetadataFilter(shards, manifest)
    metadata.require_valid(conditions)
    (mask,) = metadata.matching_rows(conditions)
    return [value for value, meets in zip(values, mask, strict=True) if meets]


TEXTS = ["web", "wiki", "books", "", None]
NUMBERS = [1, 2.5, 3, -(2**60), 2**60 + 1, None, float("nan")]
LISTS = [["a", "b"], ["b"], ["c", None], [], [None], None]
DAYS = ["2024-05-01", "2024-12-31", "2025-01-01", None]


@pytest.mark.parametrize(
    ("values", "condition", "expected"),
    [
        (TEXTS, "wiki", ["wiki"]),
        (TEXTS, ["web", "wiki", "papers"], ["web", "wiki"]),
        (TEXTS, [], []),
        (TEXTS, "", [""]),
        (TEXTS, None, [None]),
        (TEXTS, ["web", None], ["web", None]),
        (TEXTS, {"ne": "wiki"}, ["web", "books", "", None]),
        (TEXTS, {"ne": "wiki", "exists": True}, ["web", "books", ""]),
        (TEXTS, {"not_in": ["wiki", "web"]}, ["books", "", None]),
        (TEXTS, {"not_in": ["wiki", None]}, ["web", "books", ""]),
        (TEXTS, {"not_in": []}, TEXTS),
        (TEXTS, {"exists": True}, ["web", "wiki", "books", ""]),
        (TEXTS, {"exists": False}, [None]),
        (TEXTS, {"exists": False, "ne": "wiki"}, [None]),
        (TEXTS, {"gte": "web", "ne": "wiki"}, ["web"]),
        (NUMBERS[:6], 1.0, [1]),
        (NUMBERS[:6], 2**60 + 1, [2**60 + 1]),
        (NUMBERS[:6], 2**60, []),
        (NUMBERS[:6], {"gte": 1, "lt": 3}, [1, 2.5]),
        (NUMBERS[:6], {"gte": 1, "lt": 4, "ne": 2.5, "not_in": [3]}, [1]),
        (NUMBERS[:6], {"lte": 1}, [1, -(2**60)]),
        (NUMBERS[:6], {"gt": 1, "exists": True}, [2.5, 3, 2**60 + 1]),
        (NUMBERS[:6], {"ne": 1}, [2.5, 3, -(2**60), 2**60 + 1, None]),
        ([True, False, None], True, [True]),
        ([True, False, None], {"ne": True}, [False, None]),
        ([True, False, None], {"exists": True}, [True, False]),
        (LISTS, "b", [["a", "b"], ["b"]]),
        (LISTS, {"ne": "b"}, [["c", None], [], [None], None]),
        (LISTS, {"not_in": ["a", "c"]}, [["b"], [], [None], None]),
        (LISTS, {"exists": True}, [["a", "b"], ["b"], ["c", None]]),
        (LISTS, None, [[], [None], None]),
        (LISTS, {"gte": "b", "ne": "c"}, [["a", "b"], ["b"]]),
        ([[1, 9], [5], []], {"gt": 3, "lt": 7}, [[5]]),
        (DAYS, {"gte": "2024", "lt": "2025"}, ["2024-05-01", "2024-12-31"]),
        ([{"a": 1}, None], {"exists": True}, [{"a": 1}]),
        ([{"a": 1}, None], None, [None]),
        ([None, None], {"ne": 3}, [None, None]),
        ([None, None], "any value", []),
        ([1, "1", True, None], 1, [1]),
        ([1, "1", True, None], True, [True]),
        ([1, "1", True, None], {"gte": "0"}, ["1"]),
        ([1, "1", True, None], {"ne": "1"}, [1, True, None]),
    ],
)
def test_conditions_mean_what_they_say(values, condition, expected):
    matching = matching_values(values, condition)
    assert [(type(value), value) for value in matching] == [(type(value), value) for value in expected]


def test_nan_counts_as_no_value():
    assert matching_values([1.5, float("nan")], {"exists": True}) == [1.5]
    assert len(matching_values([1.5, float("nan")], None)) == 1
    assert len(matching_values([1.5, float("nan")], {"ne": 1.5})) == 1


@pytest.mark.parametrize(
    ("values", "condition", "message"),
    [
        ([1, 2], "1", "'column' holds integers: expected integers or null, got the text '1'"),
        ([1, 2], ["1", 2], "got the text '1'"),
        ([1, 2], [2, "1"], "got the text '1'"),
        ([1, 2], True, "got the boolean True"),
        ([1, 2], {"gte": "1"}, "got the text '1'"),
        ([1, 2], {"ne": "1"}, "got the text '1'"),
        ([1, 2], {"gte": 1, "not_in": ["1"]}, "got the text '1'"),
        ([1, 2.5, None], "1", "holds numbers: expected numbers or null"),
        (TEXTS, 7, "holds text: expected text or null, got the number 7"),
        (TEXTS, {"lt": 7}, "got the number 7"),
        (TEXTS, {"ne": False}, "got the boolean False"),
        ([True, None], 1, "holds booleans: expected booleans or null, got the number 1"),
        ([True, None], "true", "got the text 'true'"),
        ([True, None], {"gte": 0}, "got the number 0"),
        (LISTS, 3, "holds lists of text: expected text or null, got the number 3"),
        ([[1], [2, 3]], {"not_in": ["x"]}, "holds lists of integers: expected integers or null"),
        ([{"a": 1}], "a", "holds objects: expected `exists`, or null, got the text 'a'"),
    ],
)
def test_a_condition_of_another_type_than_its_column_is_refused(values, condition, message):
    with pytest.raises(InvalidInput, match=f"^filter: the metadata column .*{re.escape(message)}"):
        matching_values(values, condition)


def test_the_type_of_a_column_is_that_of_all_shards():
    parts = [[{"column": 1}], [{"column": None}], [{"column": 2.5}]]
    for recorded in (True, False):
        shards, manifest = make_metadata_shards(*parts, recorded=recorded)
        with pytest.raises(InvalidInput, match="holds numbers"):
            MetadataFilter(shards, manifest).require_valid({"column": "1"})
    shards, manifest = make_metadata_shards(*parts)
    with pytest.raises(InvalidInput, match="holds numbers"):
        MetadataFilter((), manifest).require_valid({"column": "1"})


def test_a_filter_of_very_many_values_is_as_fast_as_one_of_few():
    shards, manifest = make_metadata_shards([{"column": f"source {number}"} for number in range(4000)])
    metadata = MetadataFilter(shards, manifest)
    wanted = tuple(f"source {number}" for number in range(3999, 203_999))
    for conditions in ({"column": wanted}, {"column": Range(not_in=wanted)}):
        metadata.require_valid(conditions)
        (mask,) = metadata.matching_rows(conditions)
        assert int(mask.sum()) == (1 if isinstance(conditions["column"], tuple) else 3999)


def test_conditions_that_python_takes_for_equal_are_not_searched_for_together():
    requests = [SearchRequest.from_query(query(filter={"number": value})) for value in (1, True, 1)]
    assert requests[0].batch_key != requests[1].batch_key
    assert requests[0].batch_key == requests[2].batch_key


@pytest.mark.parametrize(
    "condition",
    [
        {},
        {"gte": 1, "lt": "2"},
        {"above": 3},
        {"gte": None},
        {"ne": None},
        {"lt": float("nan")},
        {"gte": True},
        {"ne": ["a"]},
        {"not_in": "a"},
        {"not_in": [["a"]]},
        {"exists": "true"},
        {"exists": 1},
        [["a"]],
        float("inf"),
        [float("nan")],
    ],
    ids=str,
)
def test_a_condition_that_makes_no_sense_is_refused(condition):
    with pytest.raises(InvalidInput, match=r"^filter\.number.*expected|^filter\.number.*Extra") as raised:
        AttributionQuery.model_validate(
            {"index": "facts", "prompt": "a", "completion": "b", "filter": {"number": condition}}
        )
    assert len(str(raised.value).splitlines()) == 1


def test_a_query_is_the_same_after_it_was_sent_as_json():
    conditions = {
        "a": {"gte": 1, "ne": 3},
        "b": {"exists": False},
        "c": {"not_in": [True, None]},
        "d": [1, "x"],
    }
    sent = query(filter=conditions)
    assert AttributionQuery.model_validate_json(sent.model_dump_json()) == sent


def test_a_filter_of_another_type_fails_only_the_query_that_has_it(indexes):
    good, bad = indexes["float16"].attribute(
        [query(filter={"source": {"ne": "web"}}), query(filter={"number": "7"})]
    )
    assert {int(row.id.removeprefix("doc-")) % 2 for row in good.results} == {1}
    assert isinstance(bad, InvalidInput)
    assert "'number' holds integers" in str(bad)
    index = indexes["float16"]
    with pytest.raises(InvalidInput, match="'source' holds text"):
        index.search(torch.randn(1, index.collector.dimensions), index.processor, filter={"source": 3})
