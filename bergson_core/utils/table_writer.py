"""Writes tables as JSON Lines, CSV or Parquet files, which appear whole or not at all."""

import csv
import io
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, Final

import pyarrow as pa
import pyarrow.parquet as pq

from bergson_core.errors import InvalidInput
from bergson_core.utils.atomic_files import atomic_path

_ROW_GROUP_BYTES: Final = 2**24
"""Size of a row group of a Parquet file before compression."""


def write_table(rows: pa.RecordBatchReader, path: str | Path, *, overwrite: bool = False) -> int:
    """Writes rows to a file, batch by batch as they are read.

    Args:
        rows: The rows, for example those of `score_corpus`. A column `metadata` holds JSON text.
        path: A `.jsonl` file, which gets one object a line with metadata as an object; a `.csv` file, which gets a
            header, and in whose cells nothing is empty and metadata and lists are JSON; or a `.parquet` file, which
            keeps metadata as text.
        overwrite: Replace an existing file.

    Returns:
        The number of rows.

    Raises:
        InvalidInput: The path has another suffix, its directory does not exist, the file exists, or it cannot be
            written.
    """
    path = Path(path)
    require_writable(path, overwrite=overwrite)
    with _open_atomically(path, overwrite) as file:
        return _WRITERS[path.suffix](rows, file)


def require_writable(path: Path, *, overwrite: bool = False) -> None:
    """Checks that `write_table` can write to a path.

    Raises:
        InvalidInput: The path has an unknown suffix, its directory does not exist, or the file exists.
    """
    if path.suffix not in _WRITERS:
        raise InvalidInput(f"{path} is not of a known type; expected {', '.join(_WRITERS)}")
    if not path.parent.is_dir():
        raise InvalidInput(f"{path.parent} is no directory; expected one for {path.name}")
    if path.is_dir() or (path.exists() and not overwrite):
        raise InvalidInput(f"{path} is there already; expected a new file, or overwrite to replace it")


def parse_metadata(text: str) -> dict[str, Any]:
    """Returns the metadata that an index stores as `text`. NaN, which JSON does not have, becomes None."""
    return json.loads(text, parse_constant=lambda _: None)


@contextmanager
def _open_atomically(path: Path, overwrite: bool) -> Iterator[IO[bytes]]:
    """Yields a file that becomes `path` at the end, unless an error is raised."""
    try:
        with atomic_path(path, durable=True) as temporary:
            with temporary.open("wb") as file:
                yield file
            require_writable(path, overwrite=overwrite)
    except OSError as error:
        raise InvalidInput(f"{path} cannot be written: {error}") from error


def _write_jsonl(rows: pa.RecordBatchReader, file: IO[bytes]) -> int:
    count = 0
    for batch in rows:
        for row in batch.to_pylist():
            if "metadata" in row:
                row["metadata"] = parse_metadata(row["metadata"])
            line = json.dumps(row, ensure_ascii=False, allow_nan=False)
            # A lone surrogate cannot be encoded; backslashreplace writes it as JSON escapes it.
            file.write(line.encode(errors="backslashreplace") + b"\n")
        count += batch.num_rows
    return count


def _write_csv(rows: pa.RecordBatchReader, file: IO[bytes]) -> int:
    count = 0
    # A lone surrogate cannot be encoded; JSON Lines escape it in the same way.
    with _as_text(file) as text:
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(rows.schema.names)
        for batch in rows:
            for row in batch.to_pylist():
                writer.writerow(_csv_cell(name, value) for name, value in row.items())
            count += batch.num_rows
    return count


def _csv_cell(name: str, value: Any) -> Any:
    value = parse_metadata(value) if name == "metadata" else value
    return json.dumps(value, ensure_ascii=False) if isinstance(value, list | dict) else value


@contextmanager
def _as_text(file: IO[bytes]) -> Iterator[IO[str]]:
    """Yields `file` as a text file in UTF-8, and leaves it open."""
    text = io.TextIOWrapper(file, "utf-8", errors="backslashreplace", newline="")
    try:
        yield text
    finally:
        text.flush()
        text.detach()


def _write_parquet(rows: pa.RecordBatchReader, file: IO[bytes]) -> int:
    count, group = 0, []
    with pq.ParquetWriter(file, rows.schema) as writer:
        for batch in rows:
            group.append(batch)
            count += batch.num_rows
            if sum(part.nbytes for part in group) >= _ROW_GROUP_BYTES:
                writer.write_table(pa.Table.from_batches(group))
                group = []
        if group:
            writer.write_table(pa.Table.from_batches(group))
    return count


_WRITERS: Final[dict[str, Callable[[pa.RecordBatchReader, IO[bytes]], int]]] = {
    ".jsonl": _write_jsonl,
    ".csv": _write_csv,
    ".parquet": _write_parquet,
}
