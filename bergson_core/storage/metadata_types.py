"""The types of metadata columns: what the values of a column are, and what the values of two parts of it are together.

    null                                        no document has a value
    boolean, integer, number, text, object      `number` includes integers; dates are stored as text
    list of <type>                              lists; those without values are `list of null`
    mixed                                       values of several of these types

NaN is no value, like null: JSON has neither.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

from bergson_core.errors import InvalidInput
from bergson_core.storage.manifest import Manifest

_LIST_PREFIX: Final = "list of "
_PLURALS: Final = {"null": "no values", "text": "text", "mixed": "values of several types"}


def value_type(value: Any) -> str:
    """Returns the type of a metadata value. Whatever JSON has no type for is stored as text."""
    match value:
        case None:
            return "null"
        case bool():
            return "boolean"
        case int():
            return "integer"
        case float():
            return "null" if math.isnan(value) else "number"
        case list() | tuple():
            return _LIST_PREFIX + merge_types(map(value_type, value))
        case Mapping():
            return "object"
        case _:
            return "text"


def merge_types(types: Iterable[str]) -> str:
    """Returns the type of a column whose parts have these types."""
    merged = "null"
    for kind in types:
        merged = _merge_pair(merged, kind)
    return merged


def _merge_pair(first: str, second: str) -> str:
    if first == second or second == "null":
        return first
    if first == "null":
        return second
    if {first, second} == {"integer", "number"}:
        return "number"
    if first.startswith(_LIST_PREFIX) and second.startswith(_LIST_PREFIX):
        return _LIST_PREFIX + merge_types((item_type(first), item_type(second)))
    return "mixed"


def item_type(kind: str) -> str:
    """Returns the type of the items of a list; a type that is no list is its own."""
    return kind.removeprefix(_LIST_PREFIX)


def leaf_type(kind: str) -> str:
    """Returns the type of the values in lists, at any depth; a type that is no list is its own."""
    return kind.replace(_LIST_PREFIX, "")


def describe_type(kind: str) -> str:
    """Returns the type as words of a message: `integers`, `lists of text`."""
    if kind.startswith(_LIST_PREFIX):
        return f"lists of {describe_type(item_type(kind))}"
    return _PLURALS.get(kind, f"{kind}s")


def column_types(metadata: Iterable[Mapping[str, Any]]) -> dict[str, str]:
    """Returns the type of each metadata column of some documents."""
    types: dict[str, str] = {}
    for values in metadata:
        for column, value in values.items():
            types[column] = _merge_pair(types.get(column, "null"), value_type(value))
    return types


def recorded_types(manifest: Manifest) -> dict[str, str] | None:
    """Returns the types of the metadata columns of an index, or None if a shard was written before types were."""
    columns = manifest.spec.columns.metadata
    by_shard = [entry.metadata_types for entry in manifest.shards]
    if columns and None in by_shard:
        return None
    return merge_column_types(columns, [types or {} for types in by_shard])


def merge_column_types(columns: Iterable[str], parts: Sequence[Mapping[str, str]]) -> dict[str, str]:
    """Returns the types of these columns over several parts of an index; a part may lack a column."""
    return {column: merge_types(types.get(column, "null") for types in parts) for column in columns}


def add_document_types(
    index: str, types: Mapping[str, str], document: str, metadata: Mapping[str, Any]
) -> dict[str, str]:
    """Returns the types of the metadata columns of an index together with a document that is added to it.

    Every column keeps its type. A column of integers may also take other numbers, and null is a value of every type.

    Args:
        index: Name of the index, for messages.
        types: The type of each column so far.
        document: What the document is called in messages.
        metadata: Metadata of the document.

    Raises:
        InvalidInput: A value is of another type than its column. The message names both types.
    """
    merged = {column: _merge_pair(kind, value_type(metadata.get(column))) for column, kind in types.items()}
    for column, kind in types.items():
        if merged[column] != kind and "mixed" in merged[column]:
            new, expected = describe_type(value_type(metadata[column])), describe_type(kind)
            raise InvalidInput(
                f"metadata column {column!r} of the index {index} holds {expected}, and {document} has {new}: "
                f"{metadata[column]!r:.100}. A column keeps its type; expected {expected} or null"
            )
    return merged
