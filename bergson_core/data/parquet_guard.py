"""Parquet files: how much comes out of one. A text of a megabyte that stands in a million rows is kept once."""

from pathlib import Path
from typing import Final

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from bergson_core.errors import DatasetNotFound

AT_ONCE: Final = 1024
"""Rows that are decoded in one go, of a file that was checked."""
_CHECKED_AT_ONCE: Final = 64
_ANYWAY: Final = 2**30
_TIMES: Final = 100


def require_plain_size(path: Path) -> None:
    """Raises `DatasetNotFound` where more comes out of the file than 1 GiB and a hundred times its size.

    All of it is decoded to find out, since what the file says of itself may be wrong; texts that are kept once are not
    multiplied, but counted.
    """
    most, found = _ANYWAY + _TIMES * path.stat().st_size, 0
    with pq.ParquetFile(path) as plain:
        texts = [field.name for field in plain.schema_arrow if _is_text(field.type)]
    with pq.ParquetFile(path, read_dictionary=texts) as file:
        for batch in file.iter_batches(_CHECKED_AT_ONCE):
            found += sum(map(_size, batch.columns))
            if found > most:
                raise DatasetNotFound(
                    f"{path} has {path.stat().st_size:,} bytes, and more than {most:,} come out of it; expected at "
                    f"most {_TIMES} times its size"
                )


def _is_text(kind: pa.DataType) -> bool:
    return any(of(kind) for of in (pa.types.is_string, pa.types.is_binary))


def _size(column: pa.Array) -> int:
    """Bytes of the column, each text as often as it stands there."""
    if not pa.types.is_dictionary(column.type):
        return column.nbytes
    lengths = pc.call_function("binary_length", [column.dictionary]).take(column.indices)
    return (pc.call_function("sum", [lengths]).as_py() or 0) + column.indices.nbytes
