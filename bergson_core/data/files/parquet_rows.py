"""Reads Parquet files: the columns that are asked for, and no others."""

from collections.abc import Iterator, Sequence
from typing import Final

import pyarrow as pa
import pyarrow.parquet as pq

from bergson_core.data.files.paths import DataFile
from bergson_core.data.files.text_lines import unreadable
from bergson_core.data.parquet_guard import DECODE_CHUNK_ROWS, require_bounded_size
from bergson_core.data.row_chunks import RowChunk, missing_column
from bergson_core.errors import InvalidInput
from bergson_core.schemas.record import drop_nulls

_EXPECTED: Final = "expected text, numbers, truth values, dates, lists or objects"


def iter_parquet_chunks(file: DataFile, names: Sequence[str]) -> Iterator[RowChunk]:
    """Yields the rows of a file.

    Raises:
        ColumnNotFound: The file lacks a column.
        DatasetNotFound: The file is damaged, has a column of this name twice, or decodes to far more than it has bytes.
        InvalidInput: A column holds bytes, such as images.
    """
    try:
        yield from _iter_chunks(file, names)
    except (pa.ArrowException, OSError, OverflowError, UnicodeDecodeError) as error:
        raise unreadable(file, str(error)) from error


def read_parquet_header(file: DataFile) -> list[str]:
    """Returns the names of the columns of a Parquet file."""
    try:
        return pq.read_schema(file.path).names
    except (pa.ArrowException, OSError) as error:
        raise unreadable(file, str(error)) from error


def _iter_chunks(file: DataFile, names: Sequence[str]) -> Iterator[RowChunk]:
    with pq.ParquetFile(file.path) as content:
        schema = content.schema_arrow
        for name in names:
            if name not in schema.names:
                raise missing_column(str(file.path), name, schema.names)
            if schema.names.count(name) > 1:
                raise unreadable(file, f"it has the column {name!r} {schema.names.count(name)} times")
            if _holds_bytes(kind := schema.field(name).type):
                raise InvalidInput(f"{file.path}: column {name!r} holds {kind}; {_EXPECTED}")
        require_bounded_size(file.path, names)
        first_row = 0
        for batch in content.iter_batches(DECODE_CHUNK_ROWS, columns=list(names)):
            values = {name: _read_values(file, name, batch.column(name), first_row) for name in names}
            yield RowChunk(str(file.path), first_row, values, values)
            first_row += batch.num_rows


def _read_values(file: DataFile, name: str, column: pa.Array, first_row: int) -> list[object]:
    try:
        if pa.types.is_time64(column.type):
            column = column.cast(pa.time64("us"))  # Python's times have no nanoseconds, and would lose them.
        if pa.types.is_float32(column.type):
            column = column.cast(pa.string()).cast(pa.float64())  # 0.1, and not 0.10000000149011612
        values = column.to_pylist()
        # Arrow gives each object the fields of all others, as null.
        return list(map(drop_nulls, values)) if pa.types.is_nested(column.type) else values
    except (
        ValueError,
        OverflowError,
        LookupError,
    ) as error:  # the year 10000, text that is not UTF-8, a zone
        rows = f"rows {first_row} to {first_row + len(column) - 1}"
        raise InvalidInput(
            f"{file.path}: {rows} of column {name!r} ({column.type}) cannot be read: {error}"
        ) from error


def _holds_bytes(kind: pa.DataType) -> bool:
    """Returns whether values of a type are bytes or contain some."""
    if pa.types.is_dictionary(kind):
        return _holds_bytes(kind.value_type)
    if pa.types.is_nested(kind):
        return any(_holds_bytes(kind.field(number).type) for number in range(kind.num_fields))
    return (
        pa.types.is_binary(kind)
        or pa.types.is_large_binary(kind)
        or pa.types.is_fixed_size_binary(kind)
        or pa.types.is_binary_view(kind)
    )
