"""Finds the rows of an index whose metadata meet the conditions of a query.

A metadata column is read from a shard's JSON once and kept as its distinct values and a code into them for each row, so
that a condition is evaluated for each distinct value and not for each row.

A value, or each value in a list, is compared as a key: its kind and itself, since True is not 1. Null, NaN and a list
without values have one key, which stands for no value.

Legend: n rows of a shard, u distinct values of a column.
"""

import json
import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, Final

import numpy as np
from jaxtyping import Bool, Int32

from bergson_core.errors import InvalidInput
from bergson_core.schemas.filters import Condition, Range
from bergson_core.shards.shard import Shard
from bergson_core.storage.document_table import read_metadata
from bergson_core.storage.manifest import Manifest
from bergson_core.storage.metadata_types import describe_type, leaf_type, merge_types, value_type

_Key = tuple[str, Any]
_NO_VALUE: Final[_Key] = ("null", None)
_KINDS: Final[Mapping[type, str]] = {bool: "boolean", int: "number", float: "number", str: "text"}
_BOUNDS: Final[Mapping[str, Callable[[Any, Any], bool]]] = {
    "gte": operator.ge,
    "gt": operator.gt,
    "lte": operator.le,
    "lt": operator.lt,
}
_COMPARABLE: Final[Mapping[str, frozenset[str]]] = {
    "boolean": frozenset({"boolean"}),
    "integer": frozenset({"number"}),
    "number": frozenset({"number"}),
    "text": frozenset({"text"}),
    "object": frozenset(),
}
"""Kinds of values that a column can be compared with, by its type. Other columns can be compared with any."""


@dataclass(frozen=True)
class _EncodedColumn:
    """A metadata column of a shard.

    Attributes:
        keys: The keys of each distinct value: one, or for a list those of its items.
        codes: The position of each row's value in `keys`, [n].
        type: The type of the values.
    """

    keys: Sequence[tuple[_Key, ...]]
    codes: Int32[np.ndarray, " n"]
    type: str

    @classmethod
    def read(cls, shard: Shard, name: str) -> "_EncodedColumn":
        positions: dict[tuple[_Key, ...], int] = {}
        codes = np.zeros(shard.entry.rows, dtype=np.int32)
        types: set[str] = set()
        for row, metadata in enumerate(read_metadata(shard.documents)):
            value = metadata.get(name)
            codes[row] = positions.setdefault(_keys_of(value), len(positions))
            types.add(value_type(value))
        return cls(list(positions), codes, merge_types(types))

    def rows_that_meet(self, condition: "_CompiledCondition") -> Bool[np.ndarray, " n"]:
        meets = np.fromiter(map(condition.is_met_by, self.keys), dtype=bool, count=len(self.keys))
        return meets[self.codes]


@dataclass(frozen=True)
class _CompiledCondition:
    """A condition in a form in which many values do not take longer than few.

    Attributes:
        wanted: Keys of which the document has to have one; None if it need not.
        unwanted: Keys of which the document must have none.
        bounds: Bounds that one value of the document has to lie within; None for no bounds.
        exists: Whether the document has to have a value or must have none; None if both will do.
    """

    wanted: frozenset[_Key] | None = None
    unwanted: frozenset[_Key] = frozenset()
    bounds: Callable[[_Key], bool] | None = None
    exists: bool | None = None

    @classmethod
    def of(cls, condition: Condition) -> "_CompiledCondition":
        if not isinstance(condition, Range):
            return cls(wanted=_keys_of_condition(condition))
        unwanted = [] if condition.ne is None else [condition.ne]
        return cls(
            unwanted=_keys_of_condition((*unwanted, *(condition.not_in or ()))),
            bounds=_compile_bounds(condition),
            exists=condition.exists,
        )

    def is_met_by(self, keys: tuple[_Key, ...]) -> bool:
        """Returns whether a value with these keys meets the condition."""
        if self.wanted is not None:
            return not self.wanted.isdisjoint(keys)
        return (
            self.unwanted.isdisjoint(keys)
            and self.exists in (None, keys[0] != _NO_VALUE)
            and (self.bounds is None or any(map(self.bounds, keys)))
        )


class MetadataFilter:
    """Evaluates conditions over some shards of an index. For use by one thread."""

    def __init__(self, shards: Sequence[Shard], manifest: Manifest) -> None:
        self._shards, self._manifest = shards, manifest
        self._encoded_column = cache(self._read_column)

    def require_valid(self, conditions: Mapping[str, Condition]) -> None:
        """Checks that the index has the columns of these conditions, and that their values can be compared.

        Raises:
            InvalidInput: The index does not keep a column, or a condition has a value of another type than the column.
        """
        columns = self._manifest.spec.columns.metadata
        for column, condition in conditions.items():
            if column not in columns:
                available = f"it keeps {', '.join(columns)}" if columns else "it keeps none"
                raise InvalidInput(f"filter: the index has no metadata column {column!r}; {available}")
            _require_comparable(column, self._column_type(column), condition)

    def matching_rows(self, conditions: Mapping[str, Condition]) -> list[Bool[np.ndarray, " n"]]:
        """Returns for each shard which of its rows [n] meet all conditions, which `require_valid` has checked."""
        masks = [np.ones(shard.entry.rows, dtype=bool) for shard in self._shards]
        for column, condition in conditions.items():
            compiled = _CompiledCondition.of(condition)
            for mask, encoded in zip(masks, self._encoded_column(column), strict=True):
                mask &= encoded.rows_that_meet(compiled)
        return masks

    def _read_column(self, name: str) -> list[_EncodedColumn]:
        return [_EncodedColumn.read(shard, name) for shard in self._shards]

    def _column_type(self, name: str) -> str:
        """Returns the type of a column over all shards, also those that are not open here if they have recorded it."""
        recorded = [entry.metadata_types for entry in self._manifest.shards]
        types = [known.get(name, "null") for known in recorded if known is not None]
        if None in recorded:
            columns = zip(self._shards, self._encoded_column(name), strict=True)
            types += [column.type for shard, column in columns if shard.entry.metadata_types is None]
        return merge_types(types)


def _keys_of(value: Any) -> tuple[_Key, ...]:
    """Returns the key of a value; of a list, those of its items that are values."""
    if isinstance(value, list):
        keys = dict.fromkeys(key for item in value for key in _keys_of(item))
        return tuple(key for key in keys if key != _NO_VALUE) or (_NO_VALUE,)
    kind = _KINDS.get(type(value))
    if kind is not None and value == value:  # NaN differs from itself
        return ((kind, value),)
    return (("object", json.dumps(value, sort_keys=True)),) if isinstance(value, dict) else (_NO_VALUE,)


def _keys_of_condition(condition: Any) -> frozenset[_Key]:
    """Returns the keys of a value or of several values, none of which is a list."""
    values = condition if isinstance(condition, tuple) else (condition,)
    return frozenset([(_KINDS.get(type(value), "null"), value) for value in values])


def _compile_bounds(condition: Range) -> Callable[[_Key], bool] | None:
    """Returns a function that tells whether a key lies within the bounds. A key of another kind does not."""
    bounds = condition.bounds()
    if not bounds:
        return None
    comparisons = [(_BOUNDS[name], bound) for name, bound in bounds.items()]
    ((kind, _),) = _keys_of(comparisons[0][1])

    def lies_within(key: _Key) -> bool:
        return key[0] == kind and all(compare(key[1], bound) for compare, bound in comparisons)

    return lies_within


def _require_comparable(column: str, kind: str, condition: Condition) -> None:
    """Raises `InvalidInput` if a condition compares a column of the type `kind` with a value of another type."""
    comparable = _COMPARABLE.get(leaf_type(kind))
    if comparable is None:
        return
    values: tuple[Any, ...] = condition if isinstance(condition, tuple) else (condition,)
    if isinstance(condition, Range):
        values = (*condition.bounds().values(), condition.ne, *(condition.not_in or ()))
    first_of_type = {type(value): value for value in reversed(values) if value is not None}
    for value in first_of_type.values():
        if _KINDS[type(value)] not in comparable:
            expected = f"{describe_type(leaf_type(kind))} or null" if comparable else "`exists`, or null"
            raise InvalidInput(
                f"filter: the metadata column {column!r} holds {describe_type(kind)}: expected {expected}, got the "
                f"{_KINDS[type(value)]} {value!r:.100}"
            )
