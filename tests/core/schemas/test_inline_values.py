"""What documents in a spec may hold: every spec can be stored and compared as JSON, whatever its columns hold."""

import math
import pickle
from datetime import date
from decimal import Decimal
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from bergson_core.errors import InvalidInput
from bergson_core.schemas.build import AppendSpec, BuildSpec
from bergson_core.schemas.inline_values import MAX_INTEGER_DIGITS, UnreadableValue, make_plain


def nested(depth: int) -> list:
    value = []
    for _ in range(depth - 1):
        value = [value]
    return value


PLAIN = {
    "an integer of NumPy": (np.int64(3), 3),
    "a large integer of NumPy": (np.uint64(2**64 - 1), 2**64 - 1),
    "a float of 64 bits": (np.float64(0.1), 0.1),
    "a float of 32 bits": (np.float32(0.1), 0.1),
    "a float of 16 bits": (np.float16(0.1), 0.1),
    "a truth value of NumPy": (np.bool_(True), True),
    "a text of NumPy": (np.str_("a"), "a"),
    "an array": (np.array([[1, 2], [3, 4]]), [[1, 2], [3, 4]]),
    "an array of one number": (np.array(3), 3),
    "a tuple": ((1, "a"), [1, "a"]),
    "a missing value of pandas": (pd.NA, None),
    "a missing date of pandas": (pd.NaT, None),
    "a scalar inside of an object": ({"a": [np.int8(1)]}, {"a": [1]}),
    "the largest integer": (10**MAX_INTEGER_DIGITS - 1, None),
    "the smallest integer": (1 - 10**MAX_INTEGER_DIGITS, None),
}
UNREADABLE = {
    "half a surrogate pair": ("a\ud800", "surrogate"),
    "a key with half a surrogate pair": ({"\udfff": 1}, "surrogate"),
    "bytes": (b"\xff", "bytes"),
    "an object": (SimpleNamespace(), "SimpleNamespace"),
    "a set": ({1, 2}, "set"),
    "a key that is a number": ({1: 2}, "the key 1"),
    "a huge integer": (10**5000, "integer of more than 4,300 digits"),
    "a huge negative integer": (-(10**5000), "integer of more than 4,300 digits"),
    "a date of NumPy": (np.datetime64("2020-01-01"), "datetime64"),
    "a complex number": (1j, "complex"),
}


@pytest.mark.parametrize(("value", "expected"), PLAIN.values(), ids=PLAIN)
def test_values_become_those_that_json_has(value, expected):
    (plain,) = make_plain({"x": value}).values()
    assert plain == (value if expected is None and isinstance(value, int) else expected)
    assert type(plain) in {int, float, bool, str, list, dict, type(None)}


def test_what_json_has_a_text_for_stays():
    document = {"a": date(2020, 1, 1), "b": Decimal("1.5"), "c": -math.inf, "d": nested(190)}
    assert make_plain(document) == document


@pytest.mark.parametrize(("value", "reason"), UNREADABLE.values(), ids=UNREADABLE)
@pytest.mark.parametrize(
    "place", [lambda value: value, lambda value: {"a": [value]}], ids=["alone", "inside"]
)
@pytest.mark.parametrize("spec", [BuildSpec, AppendSpec])
def test_a_value_that_json_cannot_hold_is_replaced_so_that_the_spec_can_be_stored(value, reason, place, spec):
    original = spec(model="m", documents=[{"text": "a", "x": place(value)}])
    value_or_object = original.documents[0]["x"]
    replaced = value_or_object["a"][0] if isinstance(value_or_object, dict) else value_or_object
    assert isinstance(replaced, UnreadableValue)
    assert reason in replaced.reason
    assert spec.model_validate_json(original.model_dump_json()) == original
    assert spec.model_validate(original.model_dump()).documents == original.documents


@pytest.mark.parametrize("spec", [BuildSpec, AppendSpec])
@pytest.mark.parametrize("depth", [195, 10_000])
def test_a_value_that_is_nested_too_deeply_to_be_read_again_is_refused(spec, depth):
    with pytest.raises(InvalidInput, match=r"documents\.1.*nested too deeply.*at most 190 levels"):
        spec(model="m", documents=[{"text": "a"}, {"text": "a", "x": nested(depth)}])
    original = spec(model="m", documents=[{"text": "a", "x": nested(190)}])
    assert spec.model_validate_json(original.model_dump_json()) == original


def test_a_value_that_json_cannot_hold_keeps_its_reason_on_another_machine():
    (document,) = pickle.loads(pickle.dumps([make_plain({"text": "\ud800"})]))
    assert isinstance(document["text"], UnreadableValue)
    assert "surrogate" in document["text"].reason
