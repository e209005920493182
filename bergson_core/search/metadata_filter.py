"""Finds the rows of an index whose metadata meet the conditions of a query.

A metadata column is read from a shard's JSON once and kept as its distinct values and a code into them for each row, so
that a condition is evaluated for each distinct value and not for each row.

Legend: n rows of a shard.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Int32

from bergson_core.errors import InvalidInput
from bergson_core.schemas.filters import Condition, Range
from bergson_core.shards.shard import Shard


@dataclass(frozen=True)
class _EncodedColumn:
    """A metadata column of a shard: its distinct values, and for each row [n] the position of its value in them."""

    values: Sequence[Any]
    codes: Int32[np.ndarray, " n"]

    @classmethod
    def read(cls, shard: Shard, name: str) -> "_EncodedColumn":
        positions: dict[str, int] = {}
        codes = np.zeros(shard.entry.rows, dtype=np.int32)
        for row, metadata in enumerate(shard.documents["metadata"].to_pylist()):
            value = json.dumps(json.loads(metadata).get(name), sort_keys=True)
            codes[row] = positions.setdefault(value, len(positions))
        return cls([json.loads(value) for value in positions], codes)

    def rows_that_meet(self, condition: Condition) -> Bool[np.ndarray, " n"]:
        return np.array([matches_condition(value, condition) for value in self.values], dtype=bool)[
            self.codes
        ]


class MetadataFilter:
    """Evaluates conditions over the shards of an index that keeps these metadata columns. For use by one thread."""

    def __init__(self, shards: Sequence[Shard], columns: Sequence[str]) -> None:
        self._shards, self._columns = shards, columns
        self._encoded: dict[str, list[_EncodedColumn]] = {}

    def require_columns(self, conditions: Mapping[str, Condition]) -> None:
        """Raises `InvalidInput` for a condition on a column that the index does not keep."""
        for column in conditions:
            if column not in self._columns:
                available = f"it keeps {', '.join(self._columns)}" if self._columns else "it keeps none"
                raise InvalidInput(f"filter: the index has no metadata column {column!r}; {available}")

    def matching_rows(self, conditions: Mapping[str, Condition]) -> list[Bool[np.ndarray, " n"]]:
        """Returns for each shard which of its rows [n] meet all conditions.

        Raises:
            InvalidInput: A condition is on a column that the index does not keep.
        """
        self.require_columns(conditions)
        masks = [np.ones(shard.entry.rows, dtype=bool) for shard in self._shards]
        for column, condition in conditions.items():
            for mask, encoded in zip(masks, self._encoded_column(column), strict=True):
                mask &= encoded.rows_that_meet(condition)
        return masks

    def _encoded_column(self, name: str) -> list[_EncodedColumn]:
        """Returns the column of each shard, read the first time that a condition names it."""
        if name not in self._encoded:
            self._encoded[name] = [_EncodedColumn.read(shard, name) for shard in self._shards]
        return self._encoded[name]


def matches_condition(value: Any, condition: Condition) -> bool:
    """Returns whether the metadata value of a row meets a condition.

    It does if it equals the condition, is one of the condition's values, or lies within its range. A list of values,
    such as tags, meets a condition if one of its values does. A range compares numbers with numbers only, and texts
    with texts only. True is not 1.
    """
    if isinstance(value, list):
        return any(matches_condition(item, condition) for item in value)
    if isinstance(condition, Range):
        return condition.contains(value)
    choices = condition if isinstance(condition, tuple) else (condition,)
    return any(value == choice and isinstance(value, bool) == isinstance(choice, bool) for choice in choices)
