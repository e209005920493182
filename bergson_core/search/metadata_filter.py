"""Conditions on metadata: which rows of an index a query may find.

A metadata column is read from a shard's JSON once and kept as codes into its distinct values, so that a condition is
looked at for each distinct value and not for each row.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool

from bergson_core.errors import InvalidInput
from bergson_core.schemas.filters import Condition, Range
from bergson_core.shards.shard import Shard


class MetadataFilter:
    """Evaluates conditions over the shards of an index with these metadata columns. For one thread."""

    def __init__(self, shards: Sequence[Shard], columns: Sequence[str]) -> None:
        self._shards, self._columns = shards, columns
        self._read: dict[str, list[tuple[list[Any], np.ndarray]]] = {}

    def require_columns(self, conditions: Mapping[str, Condition]) -> None:
        """Raises `InvalidInput` for a column that the index does not keep."""
        for column in conditions:
            if column not in self._columns:
                has = f"it keeps {', '.join(self._columns)}" if self._columns else "it keeps none"
                raise InvalidInput(f"filter: the index has no metadata column {column!r}; {has}")

    def matching_rows(self, conditions: Mapping[str, Condition]) -> list[Bool[np.ndarray, " n"]]:
        """For each shard, which of its rows meet all conditions."""
        self.require_columns(conditions)
        found = [np.ones(shard.entry.rows, dtype=bool) for shard in self._shards]
        for column, condition in conditions.items():
            for mask, (values, codes) in zip(found, self._column(column), strict=True):
                good = np.array([matches_condition(value, condition) for value in values], dtype=bool)
                mask &= good[codes]
        return found

    def _column(self, name: str) -> list[tuple[list[Any], np.ndarray]]:
        """(distinct values, the place of each row's among them), by shard."""
        if name not in self._read:
            self._read[name] = [_codes(shard, name) for shard in self._shards]
        return self._read[name]


def _codes(shard: Shard, name: str) -> tuple[list[Any], np.ndarray]:
    places: dict[str, int] = {}
    codes = np.zeros(shard.entry.rows, dtype=np.int32)
    for row, text in enumerate(shard.documents["metadata"].to_pylist()):
        value = json.dumps(json.loads(text).get(name), sort_keys=True)
        codes[row] = places.setdefault(value, len(places))
    return [json.loads(value) for value in places], codes


def matches_condition(value: Any, condition: Condition) -> bool:
    """Whether a row's value equals the condition, is one of its list, or lies in its range.

    A list of values, as of tags, meets a condition where one of them does. Of a range, only numbers are compared with
    numbers and only texts with texts; true is not 1.
    """
    if isinstance(value, list):
        return any(matches_condition(one, condition) for one in value)
    if isinstance(condition, Range):
        return condition.holds(value)
    wanted = condition if isinstance(condition, tuple) else (condition,)
    return any(value == one and isinstance(value, bool) == isinstance(one, bool) for one in wanted)
