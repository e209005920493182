"""Finds the rows of an index whose metadata meet the conditions of a query.

A metadata column is read from a shard's JSON once and kept as its distinct values and a code into them for each row, so
that a condition is evaluated for each distinct value and not for each row.

A value, or each value in a list, is compared as a key: its kind and itself, since True is not 1. Null, NaN and a list
without values have one key, which stands for no value.

Legend: n rows of a shard, u distinct values of a column, f their keys.
"""

import itertools
import json
import operator
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from functools import cache
from types import NoneType
from typing import Any, Final

import numpy as np
from jaxtyping import Bool, Int32, Int64

from bergson_core.errors import InvalidInput
from bergson_core.schemas.filters import Condition, Range
from bergson_core.schemas.validation.bounded_errors import short_repr
from bergson_core.shards.shard import Shard
from bergson_core.storage.document_table import read_metadata
from bergson_core.storage.manifest import Manifest
from bergson_core.storage.metadata_types import describe_type, leaf_type, merge_types, value_type

_Key = tuple[str, Any]
_KeySet = Mapping[str, AbstractSet[Any]]
"""Keys, as the values of each kind."""
_NO_VALUE: Final[_Key] = ("null", None)
_NO_VALUES: Final[_KeySet] = {"null": frozenset({None})}
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
        numbers: The number of each distinct key, by kind and value.
        keys: The numbers of the keys of each distinct value, one after another, [f]. Each has one or, if it is a list,
            those of its items.
        starts: The position in `keys` of the first key of each distinct value, [u].
        codes: The distinct value of each row, [n].
        type: The type of the values.
    """

    numbers: Mapping[str, Mapping[Any, int]]
    keys: Int64[np.ndarray, " f"]
    starts: Int64[np.ndarray, " u"]
    codes: Int32[np.ndarray, " n"]
    type: str

    @classmethod
    def read(cls, shard: Shard, name: str) -> "_EncodedColumn":
        return cls.of((metadata.get(name) for metadata in read_metadata(shard.documents)), shard.entry.rows)

    @classmethod
    def of(cls, values: Iterable[Any], n: int) -> "_EncodedColumn":
        """Returns the column of `n` rows with these values."""
        positions: dict[tuple[_Key, ...], int] = {}
        codes = np.zeros(n, dtype=np.int32)
        types: set[str] = set()
        for row, value in enumerate(values):
            codes[row] = positions.setdefault(_keys_of(value), len(positions))
            types.add(value_type(value))
        numbers: dict[str, dict[Any, int]] = defaultdict(dict)
        count = itertools.count()
        keys = [numbers[kind].setdefault(value, next(count)) for keys in positions for kind, value in keys]
        lengths = np.fromiter(map(len, positions), dtype=np.int64, count=len(positions))
        starts = np.cumsum(lengths) - lengths
        return cls(dict(numbers), np.array(keys, dtype=np.int64), starts, codes, merge_types(types))

    def rows_that_meet(self, condition: "_CompiledCondition") -> Bool[np.ndarray, " n"]:
        """Returns which rows meet a condition."""
        if not len(self.codes):
            return np.zeros(0, dtype=bool)
        return self._values_that_meet(condition)[self.codes]

    def _values_that_meet(self, condition: "_CompiledCondition") -> Bool[np.ndarray, " u"]:
        if condition.wanted is not None:
            return self._have_key(self._known(condition.wanted))
        meets = ~self._have_key(self._known(condition.unwanted))
        if condition.exists is not None:
            meets &= self._have_key(self._known(_NO_VALUES)) != condition.exists
        if condition.bounds:
            meets &= self._have_key(self._within(condition.bounds))
        return meets

    def _known(self, keys: "_KeySet") -> list[int]:
        """Returns the numbers of those of these keys that occur."""
        occurring: list[int] = []
        for kind, values in keys.items():
            numbers = self.numbers.get(kind, {})
            if len(values) < len(numbers):
                occurring += [numbers[value] for value in values if value in numbers]
            else:
                occurring += [number for value, number in numbers.items() if value in values]
        return occurring

    def _within(self, bounds: Mapping[str, Any]) -> list[int]:
        """Returns the numbers of the keys that lie within bounds of one kind. A key of another kind does not."""
        ((kind, _),) = _keys_of(next(iter(bounds.values())))
        known = list(self.numbers.get(kind, {}).items())
        for name, bound in bounds.items():
            compare = _BOUNDS[name]
            known = [(value, number) for value, number in known if compare(value, bound)]
        return [number for _, number in known]

    def _have_key(self, numbers: Sequence[int]) -> Bool[np.ndarray, " u"]:
        """Returns which of the distinct values have one of the keys with these numbers."""
        is_key = np.zeros(len(self.keys), dtype=bool)
        is_key[numbers] = True
        return np.logical_or.reduceat(is_key[self.keys], self.starts)


@dataclass(frozen=True)
class _CompiledCondition:
    """A condition in a form in which many values do not take longer than few.

    Attributes:
        wanted: Keys of which the document has to have one; None if it need not.
        unwanted: Keys of which the document must have none.
        bounds: Bounds that one value of the document has to lie within.
        exists: Whether the document has to have a value or must have none; None if both will do.
    """

    wanted: _KeySet | None = None
    unwanted: _KeySet = field(default_factory=dict)
    bounds: Mapping[str, Any] = field(default_factory=dict)
    exists: bool | None = None

    @classmethod
    def of(cls, condition: Condition) -> "_CompiledCondition":
        if not isinstance(condition, Range):
            return cls(wanted=_key_set(condition if isinstance(condition, tuple) else (condition,)))
        unwanted = () if condition.ne is None else (condition.ne,)
        return cls(
            unwanted=_key_set((*unwanted, *(condition.not_in or ()))),
            bounds=condition.bounds(),
            exists=condition.exists,
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
                raise InvalidInput(
                    f"filter: the index has no metadata column {short_repr(column)}; {available}"
                )
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


def _key_set(values: Sequence[Any]) -> _KeySet:
    """Returns the keys of several values, none of which is a list."""
    kinds = {kind: _KINDS.get(kind, "null") for kind in set(map(type, values))}
    if len(set(kinds.values())) == 1:
        return {next(iter(kinds.values())): frozenset(values)}
    return {
        kind: frozenset(value for value in values if kinds[type(value)] == kind)
        for kind in set(kinds.values())
    }


def _require_comparable(column: str, kind: str, condition: Condition) -> None:
    """Raises `InvalidInput` if a condition compares a column of the type `kind` with a value of another type."""
    comparable = _COMPARABLE.get(leaf_type(kind))
    if comparable is None:
        return
    values: tuple[Any, ...] = condition if isinstance(condition, tuple) else (condition,)
    if isinstance(condition, Range):
        values = (*condition.bounds().values(), condition.ne, *(condition.not_in or ()))
    wrong_types = {of for of in set(map(type, values)) - {NoneType} if _KINDS[of] not in comparable}
    if wrong_types:
        value = next(value for value in values if type(value) in wrong_types)
        expected = f"{describe_type(leaf_type(kind))} or null" if comparable else "`exists`, or null"
        raise InvalidInput(
            f"filter: the metadata column {short_repr(column)} holds {describe_type(kind)}: expected {expected}, got "
            f"the {_KINDS[type(value)]} {short_repr(value)}"
        )
