"""`AttributionIndex.query` answers one query or raises; an open index needs no name of itself in a query."""

import inspect

import pytest
import torch

from bergson_core import (
    Answer,
    AttributionIndex,
    AttributionQuery,
    VerifySpec,
    build_index,
    take_down_document,
)
from bergson_core.errors import BergsonError, IndexCorrupt, InvalidInput, TooLong
from tests.core.helpers import query

PROMPT, COMPLETION = "Person 3 lives in", " city 1."


@pytest.fixture(scope="module")
def opened(index) -> AttributionIndex:
    return AttributionIndex.open(index)


def test_a_query_has_the_answer_that_the_list_form_gives(opened):
    answer = opened.query(PROMPT, COMPLETION, top_k=7, direction="both", include=("text", "modules"))
    (expected,) = opened.attribute([query(top_k=7, direction="both", include=("text", "modules"))])
    assert answer.model_copy(update={"timing_ms": expected.timing_ms}) == expected


@pytest.mark.parametrize(
    ("arguments", "check"),
    [
        ({}, lambda answer: len(answer.results) == 10 and answer.opponents is None),
        ({"top_k": 3}, lambda answer: [row.rank for row in answer.results] == [1, 2, 3]),
        ({"direction": "opponents"}, lambda answer: answer.results is None and len(answer.opponents) == 10),
        ({"span": (0, 5)}, lambda answer: answer.query.n_tokens < len(COMPLETION)),
        (
            {"filter": {"source": "wiki", "number": {"lt": 20}}},
            lambda answer: {row.metadata["source"] for row in answer.results} == {"wiki"},
        ),
        ({"include": ["metadata"]}, lambda answer: answer.results[0].prompt is None),
        ({"verify": VerifySpec(top=1, controls=1)}, lambda answer: answer.results[0].verified is not None),
        ({"profile": "default"}, lambda answer: answer.profile == "default"),
        ({"partial": True}, lambda answer: not answer.partial),
    ],
    ids=lambda value: str(value) if isinstance(value, dict) else "",
)
def test_each_argument_does_what_the_field_of_the_same_name_does(opened, arguments, check):
    assert check(opened.query(PROMPT, COMPLETION, **arguments))


def test_a_completion_that_is_left_out_is_generated(opened):
    answer = opened.query(PROMPT, max_new_tokens=4)
    assert answer.query.generated
    assert answer.query.completion
    assert answer.query.n_tokens <= 4


def test_the_arguments_and_their_defaults_are_those_of_a_query():
    parameters = dict(inspect.signature(AttributionIndex.query).parameters)
    del parameters["self"]
    fields = {name: field for name, field in AttributionQuery.model_fields.items() if name != "index"}
    assert set(parameters) == set(fields)
    for name, field in fields.items():
        assert field.is_required() or parameters[name].default == field.default


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"top_k": 0}, InvalidInput, "top_k"),
        ({"direction": "sideways"}, InvalidInput, "direction"),
        ({"include": ["pictures"]}, InvalidInput, "include"),
        ({"span": (0, 99)}, InvalidInput, "span"),
        ({"filter": {"year": 1990}}, InvalidInput, "no metadata column 'year'"),
        ({"filter": {"number": {"above": 3}}}, InvalidInput, "filter"),
        ({"profile": "law"}, InvalidInput, "it has default"),
        ({"include": ["tokens"], "top_k": 33}, InvalidInput, "at most 32"),
        ({"prompt": "too long " * 90}, TooLong, "64 allowed"),
        ({"prompt": "", "completion": "a"}, InvalidInput, "nothing to attribute"),
        ({"completion": ""}, InvalidInput, "completion"),
    ],
    ids=str,
)
def test_a_query_that_cannot_be_answered_raises_a_bergson_error(opened, arguments, error, message):
    with pytest.raises(error, match=message) as raised:
        opened.query(**({"prompt": PROMPT, "completion": COMPLETION} | arguments))
    assert isinstance(raised.value, BergsonError)


def test_damaged_shards_are_left_out_for_queries_that_allow_it(spec, tmp_path):

    path = tmp_path / "facts"
    build_index(spec, path, shard_rows=16)
    rows = path / "shards" / "00001" / "gradients.bin"
    rows.write_bytes(rows.read_bytes()[:-2])
    opened = AttributionIndex.open(path, partial=True)
    with pytest.raises(IndexCorrupt, match="00001"):
        opened.query(PROMPT, COMPLETION)
    answer = opened.query(PROMPT, COMPLETION, top_k=40, partial=True)
    assert answer.partial
    assert len(answer.results) == 24


@pytest.mark.parametrize("partial", [False, True])
@pytest.mark.parametrize(("shard_rows", "has_others"), [(16, True), (1000, False)])
def test_only_an_index_with_other_shards_is_said_to_be_searched_in_part(
    spec, tmp_path, partial, shard_rows, has_others
):
    path = tmp_path / "facts"
    build_index(spec, path, shard_rows=shard_rows)
    rows = path / "shards" / "00000" / "gradients.bin"
    rows.write_bytes(rows.read_bytes()[:-2])
    if partial and has_others:
        assert AttributionIndex.open(path, partial=True)
        return
    with pytest.raises(IndexCorrupt, match="shard 00000 of the index facts cannot be used") as raised:
        AttributionIndex.open(path, partial=partial)
    assert ("set partial (`--partial` on the command line)" in str(raised.value)) == has_others


def test_an_answer_names_the_open_index_unless_the_query_names_one(opened):
    unnamed = AttributionQuery(prompt=PROMPT, completion=COMPLETION)
    answers = opened.attribute([unnamed, unnamed.model_copy(update={"index": "alias"})])
    assert [answer.index for answer in answers if isinstance(answer, Answer)] == [opened.name, "alias"]
    assert opened.query(PROMPT, COMPLETION).index == opened.name == "facts"


def test_a_document_that_was_taken_down_is_not_in_later_answers(spec, tmp_path):

    path = tmp_path / "facts"
    build_index(spec, path, shard_rows=16)
    opened = AttributionIndex.open(path)
    best = opened.query(PROMPT, COMPLETION).results[0].id
    take_down_document(path, best)
    assert best not in {row.id for row in opened.query(PROMPT, COMPLETION, top_k=40).results}


def test_gradients_made_elsewhere_with_a_filter_that_is_none_are_refused(opened):

    rows = torch.zeros(1, opened.collector.dimensions)
    with pytest.raises(InvalidInput, match="number"):
        opened.search(rows, opened.processor, filter={"number": {"above": 3}})
