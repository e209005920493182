"""Refuses Parquet files that decode to far more data than they have bytes.

A Parquet file stores a text of a megabyte only once even if it is the value of a million rows.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Final

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from bergson_core.errors import DatasetNotFound

DECODE_CHUNK_ROWS: Final = 1024
"""Rows of a checked file that are decoded at a time."""
_CHECK_CHUNK_ROWS: Final = 64
_MAX_SMALL_BYTES: Final = 2**30
_MAX_GROWTH: Final = 100


def max_decoded_bytes(path: Path) -> int:
    """Returns how much may come out of a file: 1 GiB plus a hundred times its size."""
    return _MAX_SMALL_BYTES + _MAX_GROWTH * path.stat().st_size


def require_bounded_size(path: Path, columns: Sequence[str]) -> None:
    """Checks that some columns of a Parquet file decode to at most `max_decoded_bytes`.

    They are decoded for this to the end, because what the file says about itself may be wrong. Texts that are stored
    once are counted as often as they occur, but not copied.

    Raises:
        DatasetNotFound: The columns decode to more than that.
    """
    limit, decoded = max_decoded_bytes(path), 0
    with pq.ParquetFile(path) as plain:
        texts = [field.name for field in plain.schema_arrow if _is_text(field.type)]
    with pq.ParquetFile(path, read_dictionary=texts) as file:
        for batch in file.iter_batches(_CHECK_CHUNK_ROWS, columns=list(columns)):
            decoded += sum(map(_decoded_bytes, batch.columns))
            if decoded > limit:
                raise DatasetNotFound(
                    f"{path} has {path.stat().st_size:,} bytes, and unpacks to more than {limit:,}; expected at "
                    f"most {_MAX_GROWTH} times its size"
                )


def _is_text(type: pa.DataType) -> bool:
    return pa.types.is_string(type) or pa.types.is_binary(type)


def _decoded_bytes(column: pa.Array) -> int:
    """Returns the bytes of a column in which each text is counted as often as it occurs."""
    if not pa.types.is_dictionary(column.type):
        return column.nbytes
    lengths = pc.call_function("binary_length", [column.dictionary]).take(column.indices)
    return (pc.call_function("sum", [lengths]).as_py() or 0) + column.indices.nbytes
