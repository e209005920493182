"""Tables as files, JSON lines or Parquet, written whole or not at all. No torch here.

A file is made beside its place under a name that starts with a dot, flushed to disk, and renamed.
"""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, Final

import pyarrow as pa
import pyarrow.parquet as pq

from bergson_core.errors import InvalidInput
from bergson_core.utils.atomic_files import atomic_path

_GROUP_BYTES: Final = 2**24
"""Of a Parquet row group, before compression."""


def write_table(rows: pa.RecordBatchReader, path: str | Path, *, overwrite: bool = False) -> int:
    """Writes rows batch by batch as they are read, and says how many; the column `metadata` is JSON text.

    A `.jsonl` has an object a line, with metadata as an object; a `.parquet` has metadata as text.
    Raises `InvalidInput` as `check_output` does, and where the disk refuses.
    """
    path = Path(path)
    check_output(path, overwrite=overwrite)
    with _whole(path, overwrite) as file:
        return _WRITERS[path.suffix](rows, file)


def check_output(path: Path, *, overwrite: bool = False) -> None:
    """Raises `InvalidInput` for a file that cannot be written: of no known type, in no directory, or there already."""
    if path.suffix not in _WRITERS:
        raise InvalidInput(f"{path} is not of a known type; expected {' or '.join(_WRITERS)}")
    if not path.parent.is_dir():
        raise InvalidInput(f"{path.parent} is no directory; expected one for {path.name}")
    if path.is_dir() or (path.exists() and not overwrite):
        raise InvalidInput(f"{path} is there already; expected a new file, or overwrite to replace it")


def from_json(text: str) -> dict[str, Any]:
    """Metadata as it was stored; NaN, which JSON does not have, is None."""
    return json.loads(text, parse_constant=lambda _: None)


@contextmanager
def _whole(path: Path, overwrite: bool) -> Iterator[IO[bytes]]:
    """A file that becomes `path` at the end, unless something goes wrong."""
    try:
        with atomic_path(path, durable=True) as temporary:
            with temporary.open("wb") as file:
                yield file
            check_output(path, overwrite=overwrite)
    except OSError as error:
        raise InvalidInput(f"{path} cannot be written: {error}") from error


def _write_jsonl(rows: pa.RecordBatchReader, file: IO[bytes]) -> int:
    count = 0
    for batch in rows:
        for row in batch.to_pylist():
            if "metadata" in row:
                row["metadata"] = from_json(row["metadata"])
            line = json.dumps(row, ensure_ascii=False, allow_nan=False)
            file.write(line.encode(errors="backslashreplace") + b"\n")  # half a surrogate as JSON escapes it
        count += batch.num_rows
    return count


def _write_parquet(rows: pa.RecordBatchReader, file: IO[bytes]) -> int:
    count, group = 0, []
    with pq.ParquetWriter(file, rows.schema) as writer:
        for batch in rows:
            group.append(batch)
            count += batch.num_rows
            if sum(part.nbytes for part in group) >= _GROUP_BYTES:
                writer.write_table(pa.Table.from_batches(group))
                group = []
        if group:
            writer.write_table(pa.Table.from_batches(group))
    return count


_WRITERS: Final[dict[str, Callable[[pa.RecordBatchReader, IO[bytes]], int]]] = {
    ".jsonl": _write_jsonl,
    ".parquet": _write_parquet,
}
