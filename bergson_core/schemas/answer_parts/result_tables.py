"""The results of answers as Arrow tables, whose columns are the fields of `ResultRow` with the types that these have.

Objects with known fields are structs, and lists are lists. What differs in its fields or types from index to index
(metadata, modules, and groups, which have a value of the metadata) is JSON text, since a column of Arrow has one type.
"""

import json
from collections.abc import Mapping, Sequence
from types import NoneType, UnionType
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal, Union, get_args, get_origin

from pydantic import BaseModel

if TYPE_CHECKING:
    import pyarrow as pa  # slow to load, and most web processes never need it

JSON_COLUMNS: Final = frozenset({"metadata", "modules", "group"})
"""Columns of JSON text."""
ANSWER_KEY: Final = b"bergson.answer"
"""Key in the metadata of a table's schema: the answer without its results, as JSON."""
_SHOWN_ALWAYS: Final = frozenset(
    {"direction", "rank", "id", "score", "percentile", "loss", "prompt", "completion"}
)
"""Columns that a spreadsheet has also where they are empty."""


def results_table(lists: Mapping[str, Sequence[BaseModel] | None], row_type: type[BaseModel]) -> "pa.Table":
    """Returns the results of an answer, a row for each.

    Args:
        lists: The results of each direction, by the name of the direction, which becomes the column `direction`.
        row_type: The class of the results.
    """
    import pyarrow as pa

    fields = [
        (name, pa.string() if name in JSON_COLUMNS else _arrow_type(field.annotation))
        for name, field in row_type.model_fields.items()
    ]
    schema = pa.schema([("direction", pa.string()), *fields])
    rows = [
        {"direction": direction} | _arrow_values(row.model_dump())
        for direction, results in lists.items()
        for row in results or ()
    ]
    return pa.Table.from_pylist(rows, schema=schema)


def spread_columns(table: "pa.Table") -> "pa.Table":
    """Returns a table of results as people read it in a spreadsheet.

    Each metadata column is a column of its own, `metadata.NAME`, with text as it is and other values as JSON. The two
    ends of `interval` are columns. Columns of parts that no result has are left out.
    """
    import pyarrow as pa

    texts = table["metadata"].to_pylist()
    metadata = [json.loads(text or "{}", parse_constant=lambda _: None) for text in texts]  # NaN is nothing
    names = dict.fromkeys(name for values in metadata for name in values)
    ends = [interval or (None, None) for interval in table["interval"].to_pylist()]
    spread = {
        "metadata": {
            f"metadata.{name}": pa.array([_cell(values.get(name)) for values in metadata], pa.string())
            for name in names
        },
        "interval": {
            f"interval.{name}": pa.array([interval[end] for interval in ends], pa.float64())
            for end, name in enumerate(("low", "high"))
        },
    }
    columns: dict[str, Any] = {}
    for name, column in zip(table.column_names, table.columns, strict=True):
        if name in _SHOWN_ALWAYS or any(column.to_pylist()):
            columns |= spread.get(name, {name: column})
    return pa.table(columns)


def _cell(value: Any) -> str | None:
    return value if value is None or isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _arrow_values(fields: dict[str, Any]) -> dict[str, Any]:
    """Returns the fields of a result as Arrow keeps them."""
    for name in JSON_COLUMNS:
        if fields[name] is not None:
            fields[name] = json.dumps(fields[name], default=str)
    return fields


def _arrow_type(annotation: Any) -> "pa.DataType":
    """Returns the Arrow type of the values of a field."""
    import pyarrow as pa

    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin in (Union, UnionType):
        (only,) = (argument for argument in arguments if argument is not NoneType)
        return _arrow_type(only)
    if origin is Annotated:
        return _arrow_type(arguments[0])
    if origin is Literal:
        return _arrow_type(type(arguments[0]))
    if origin in (list, tuple):
        return pa.list_(_arrow_type(arguments[0]))
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return pa.struct(
            [(name, _arrow_type(field.annotation)) for name, field in annotation.model_fields.items()]
        )
    types = {str: pa.string(), bool: pa.bool_(), int: pa.int64(), float: pa.float64()}
    return types[annotation]
