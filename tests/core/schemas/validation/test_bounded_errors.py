"""However large a wrong value is, it has few errors."""

import pytest
from pydantic import ValidationError

from bergson_core.errors import InvalidInput
from bergson_core.schemas.base import Spec
from bergson_core.schemas.build import BuildSpec
from bergson_core.schemas.query import AttributionQuery
from bergson_core.schemas.validation.bounded_errors import MAX_LIST_ERRORS, short_repr

QUERY = {"index": "facts", "prompt": "a", "completion": "b"}


def errors_of(spec: type[Spec], fields: object) -> list[dict]:
    with pytest.raises(InvalidInput) as raised:
        spec.model_validate(fields)
    assert isinstance(raised.value.__cause__, ValidationError)
    return raised.value.__cause__.errors()


def test_all_of_a_few_wrong_items_are_named() -> None:
    messages = [
        {"role": "user", "content": "a"},
        0,
        {"role": "user"},
        {},
        {"role": "assistant", "content": "b"},
    ]
    locations = [
        error["loc"] for error in errors_of(AttributionQuery, {"index": "facts", "messages": messages})
    ]
    assert locations == [("messages", 1), ("messages", 3)]


def test_validation_of_a_list_stops_after_many_errors() -> None:
    errors = errors_of(AttributionQuery, {"index": "facts", "messages": [0] * 100_000})
    assert len(errors) == MAX_LIST_ERRORS
    assert errors[-1]["loc"] == ("messages", MAX_LIST_ERRORS - 1)


def test_a_length_is_checked_before_the_items() -> None:
    (error,) = errors_of(BuildSpec, {"model": "m", "documents": [0] * 100_000})
    assert (error["type"], error["loc"]) == ("too_long", ("documents",))
    (error,) = errors_of(AttributionQuery, QUERY | {"filter": {str(n): [[]] for n in range(1000)}})
    assert (error["type"], error["loc"]) == ("too_long", ("filter",))


def test_the_first_of_many_unknown_fields_are_named() -> None:
    errors = errors_of(AttributionQuery, QUERY | {f"field-{n}": 0 for n in range(100_000)})
    assert [error["loc"] for error in errors] == [(f"field-{n}",) for n in range(100)]


@pytest.mark.parametrize(
    "value",
    [[0] * 10**6, [[[[[[[[[[1]]]]]]]]]], "x" * 10**6, 10**5000, dict.fromkeys(range(10**5))],
    ids=["long", "deep", "text", "integer", "wide"],
)
def test_a_message_formats_no_more_of_a_value_than_it_shows(value: object) -> None:
    assert 0 < len(short_repr(value)) <= 100
