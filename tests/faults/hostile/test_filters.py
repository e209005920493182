"""A filter finds the documents that a plain evaluation of its conditions finds, or is refused by name at once."""

import json
import math
from typing import Any

from hypothesis import given, seed
from hypothesis import strategies as st

from bergson_core.errors import BergsonError
from bergson_core.schemas.filters import Range, validate_filter
from bergson_core.search.metadata_filter import MetadataFilter
from tests.core.helpers import make_metadata_shards
from tests.faults.support.hostile_bodies import examples
from tests.faults.support.hostile_files import DEEP, bounded_cost, hostile_values, outcome

INTEGERS = st.sampled_from([0, 1, 2, -3, 2**60, 2**60 + 1])
NUMBERS = INTEGERS | st.sampled_from([1.0, 2.5, -0.0, 1e300, float(2**60)])
TEXTS = st.sampled_from(["", "a", "b", "A", "é", "1", "a b"])
BOOLEANS = st.booleans()
SCALARS = NUMBERS | TEXTS | BOOLEANS
NOTHING = st.sampled_from([None, math.nan])
COLUMNS = st.one_of(
    *(
        st.lists(NOTHING | values | st.none(), min_size=6, max_size=6)
        for kind in (INTEGERS, NUMBERS, TEXTS, BOOLEANS, SCALARS, st.fixed_dictionaries({"a": INTEGERS}))
        for values in (kind, st.lists(kind | st.none(), max_size=3))
    )
)
BOUNDS = NUMBERS | TEXTS
COMPARISONS = st.fixed_dictionaries(
    {},
    optional={
        **dict.fromkeys(("gte", "gt", "lte", "lt"), BOUNDS),
        "ne": SCALARS | st.none(),
        "not_in": st.lists(SCALARS | st.none(), max_size=3),
        "exists": BOOLEANS,
    },
)
CONDITIONS = SCALARS | st.none() | st.lists(SCALARS | st.none(), max_size=4) | COMPARISONS
NAMES = ("x", "y", "z")


def values_of(value: Any) -> list[Any]:
    """Returns the values of a document: null, NaN and empty lists are none."""
    if isinstance(value, list):
        return [leaf for item in value for leaf in values_of(item)]
    return [] if value is None or value != value else [value]


def is_same(first: Any, second: Any) -> bool:
    return isinstance(first, bool) == isinstance(second, bool) and first == second


def is_one_of(values: list[Any], wanted: Any) -> bool:
    if wanted is None:
        return not values
    return any(is_same(value, wanted) for value in values)


def lies_within(value: Any, bounds: dict[str, Any]) -> bool:
    kinds = {
        str if isinstance(part, str) else bool if isinstance(part, bool) else float
        for part in bounds.values()
    }
    kind = str if isinstance(value, str) else bool if isinstance(value, bool) else float
    if isinstance(value, dict) or kinds != {kind}:
        return False
    holds = {
        "gte": lambda bound: value >= bound,
        "gt": lambda bound: value > bound,
        "lte": lambda bound: value <= bound,
        "lt": lambda bound: value < bound,
    }
    return all(holds[name](bound) for name, bound in bounds.items())


def meets(value: Any, condition: Any) -> bool:
    """Returns whether a document with this value of a column meets a condition, as docs/answers.md explains it."""
    values = values_of(value)
    if not isinstance(condition, dict):
        wanted = condition if isinstance(condition, list) else [condition]
        return any(is_one_of(values, part) for part in wanted)
    unwanted = [
        *(condition.get("not_in") or ()),
        *([condition["ne"]] if condition.get("ne") is not None else ()),
    ]
    if any(is_one_of(values, part) for part in unwanted):
        return False
    if condition.get("exists") is not None and condition["exists"] != bool(values):
        return False
    bounds = {name: condition[name] for name in ("gte", "gt", "lte", "lt") if name in condition}
    return not bounds or any(lies_within(value, bounds) for value in values)


def kinds_of(values: list[Any]) -> set[type]:
    """Returns which kinds of values are in a list: float stands for all numbers."""
    kinds = {bool: bool, int: float, float: float, str: str, dict: dict}
    return {kinds[type(leaf)] for leaf in values_of(values)}


def may_be_refused(column: list[Any], condition: Any) -> bool:
    """Returns whether a condition has a value of another kind than the column, whose values are all of one."""
    fields = condition if isinstance(condition, dict) else {"is": condition}
    parts = [part for name, part in fields.items() if name != "exists"]
    return bool(kinds_of(parts) - kinds_of(column))


def test_a_filter_finds_what_a_plain_evaluation_finds(long_form: bool) -> None:
    @seed(0)
    @examples(150, long_form)
    @given(
        st.fixed_dictionaries(dict.fromkeys(NAMES, COLUMNS)),
        st.dictionaries(st.sampled_from(NAMES), CONDITIONS, min_size=1),
        st.booleans(),
    )
    def check(columns: dict[str, list[Any]], conditions: dict[str, Any], recorded: bool) -> None:
        documents = [{name: columns[name][number] for name in NAMES} for number in range(6)]
        shards, manifest = make_metadata_shards(documents[:4], documents[4:], recorded=recorded)
        metadata = MetadataFilter(shards, manifest)
        parsed = outcome(lambda: validate_filter(conditions) or {})
        if isinstance(parsed, BergsonError):
            assert "expected" in str(parsed)
            return
        refusal = outcome(lambda: metadata.require_valid(parsed))
        if isinstance(refusal, BergsonError):
            assert "expected" in str(refusal)
            assert any(may_be_refused(columns[name], condition) for name, condition in conditions.items())
            return
        masks = metadata.matching_rows(parsed)
        found = [bool(meets_all) for mask in masks for meets_all in mask]
        expected = [
            all(meets(document[name], condition) for name, condition in conditions.items())
            for document in documents
        ]
        assert found == expected, (documents, conditions)

    check()


def evaluate(metadata: MetadataFilter, filter: dict[str, Any]) -> int:
    parsed = validate_filter(filter) or {}
    metadata.require_valid(parsed)
    return len(metadata.matching_rows(parsed)[0])


def test_a_hostile_filter_is_refused_by_name_at_once(long_form: bool) -> None:
    documents = [{"x": 1, "y": "a", "z": [True, None]}, {"x": None, "y": "", "z": None}]
    shards, manifest = make_metadata_shards(documents)
    values = hostile_values.filter(lambda text: text not in (DEEP, "9" * 5000)).map(json.loads)
    fields = st.sampled_from([*Range.model_fields, "unknown"])
    conditions = values | st.dictionaries(fields, values) | st.lists(values, max_size=3)

    @seed(0)
    @examples(150, long_form)
    @given(st.dictionaries(st.sampled_from(NAMES) | st.text(), conditions, max_size=4))
    def check(filter: dict[str, Any]) -> None:
        metadata = MetadataFilter(shards, manifest)
        with bounded_cost(filter):
            result = outcome(lambda: evaluate(metadata, filter))
        if isinstance(result, BergsonError):
            assert "filter" in str(result) or any(name in str(result) for name in filter), result
        else:
            assert result == 2

    check()
