"""The results of answers as Arrow tables, whose columns are the fields of `ResultRow` with the types that these have.

Objects with known fields are structs, and lists are lists. Objects whose fields differ from index to index (metadata,
modules) are JSON text, because Arrow would fill the fields that one of them lacks with null.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from types import NoneType, UnionType
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal, Union, get_args, get_origin

from pydantic import BaseModel

if TYPE_CHECKING:
    import pyarrow as pa  # slow to load, and most web processes never need it

ANSWER_KEY: Final = b"bergson.answer"
"""Key in the metadata of a table's schema: the answer without its results, as JSON."""


def results_table(lists: Mapping[str, Sequence[BaseModel] | None], row_type: type[BaseModel]) -> "pa.Table":
    """Returns the results of an answer, a row for each.

    Args:
        lists: The results of each direction, by the name of the direction, which becomes the column `direction`.
        row_type: The class of the results.
    """
    import pyarrow as pa

    fields = {name: field.annotation for name, field in row_type.model_fields.items()}
    schema = pa.schema(
        [("direction", pa.string()), *((name, _arrow_type(type_)) for name, type_ in fields.items())]
    )
    rows = [
        {"direction": direction} | _arrow_values(row.model_dump())
        for direction, results in lists.items()
        for row in results or ()
    ]
    return pa.Table.from_pylist(rows, schema=schema)


def spread_columns(table: "pa.Table") -> "pa.Table":
    """Returns a table of results as people read it in a spreadsheet.

    Each metadata column is a column of its own, `metadata.NAME`, with text as it is and other values as JSON. Columns
    of parts that no result has are left out.
    """
    import pyarrow as pa

    texts = table["metadata"].to_pylist()
    metadata = [json.loads(text or "{}", parse_constant=lambda _: None) for text in texts]  # NaN is nothing
    names = dict.fromkeys(name for values in metadata for name in values)
    for name in reversed(names):
        cells = pa.array([_cell(values.get(name)) for values in metadata], pa.string())
        position = table.column_names.index("metadata") + 1
        table = table.add_column(position, f"metadata.{name}", cells)
    return table.drop_columns(["metadata", *_empty_parts(table)])


def _empty_parts(table: "pa.Table") -> Iterator[str]:
    """Yields the names of the columns that hold a part which no result has."""
    import pyarrow as pa

    for field, column in zip(table.schema, table.columns, strict=True):
        is_part = pa.types.is_nested(field.type) or field.name == "modules"
        is_unset = pa.types.is_boolean(field.type) and not any(column.to_pylist())
        if is_unset or (is_part and column.null_count == len(column)):
            yield field.name


def _cell(value: Any) -> str | None:
    return value if value is None or isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _arrow_values(fields: dict[str, Any]) -> dict[str, Any]:
    """Returns the fields of a result as Arrow keeps them."""
    for name in ("metadata", "modules"):
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
    if origin is dict:
        return pa.string()
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return pa.struct(
            [(name, _arrow_type(field.annotation)) for name, field in annotation.model_fields.items()]
        )
    types = {str: pa.string(), bool: pa.bool_(), int: pa.int64(), float: pa.float64()}
    return types[annotation]
