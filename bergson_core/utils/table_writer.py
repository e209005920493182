"""Writes tables (JSON Lines, CSV, Parquet) and arrays (JSON, NumPy) to files, which appear whole or not at all."""

import csv
import io
import json
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from bergson_core.errors import InvalidInput
from bergson_core.schemas.answer_parts.result_tables import JSON_COLUMNS
from bergson_core.utils.atomic_files import atomic_path

_FORMULA_STARTS: Final = ("=", "+", "-", "@", "\t", "\r")
"""What spreadsheets take for the beginning of a formula (OWASP, CSV Injection)."""
_ROW_GROUP_BYTES: Final = 2**24
"""Size of a row group of a Parquet file before compression."""


def write_table(
    rows: pa.RecordBatchReader | pa.Table,
    path: str | Path,
    *,
    overwrite: bool = False,
    escape_formulas: bool = False,
) -> int:
    """Writes rows to a file, batch by batch as they are read.

    Args:
        rows: The rows, for example those of `score_corpus` or of `Answer.to_table`. Columns `metadata`, `modules` and
            `group` hold JSON text.
        path: A `.jsonl` file, which gets one object a line with these as objects; a `.csv` file, which
            gets a header, and in whose cells nothing is empty, these and lists are JSON, and a struct is a
            column for each of its fields, `words.rank` for example; or a `.parquet` file, which keeps the types of the
            rows, and these as text.
        overwrite: Replace an existing file.
        escape_formulas: Put an apostrophe before texts in a `.csv` file that begin with =, +, -, @, a tab or a carriage
            return, which spreadsheets take for formulas. By default, texts are written as they are.

    Returns:
        The number of rows.

    Raises:
        InvalidInput: The path has another suffix, its directory does not exist, the file exists, or it cannot be
            written.
    """
    path = Path(path)
    rows = rows.to_reader() if isinstance(rows, pa.Table) else rows
    with _open_atomically(path, _TABLE_WRITERS, overwrite) as file:
        if escape_formulas and path.suffix == ".csv":
            return _write_csv(rows, file, escape_formulas=True)
        return _TABLE_WRITERS[path.suffix](rows, file)


def write_array(array: np.ndarray, path: str | Path, *, overwrite: bool = False) -> None:
    """Writes an array of finite numbers to a file.

    Args:
        array: The array.
        path: A `.json` file, which gets a list, or a list of lists; or a `.npy` file, which `numpy.load` reads.
        overwrite: Replace an existing file.

    Raises:
        InvalidInput: The path has another suffix, its directory does not exist, the file exists, or it cannot be
            written.
    """
    path = Path(path)
    with _open_atomically(path, _ARRAY_WRITERS, overwrite) as file:
        _ARRAY_WRITERS[path.suffix](array, file)


def require_writable(path: Path, suffixes: Collection[str], *, overwrite: bool = False) -> None:
    """Checks that a file with one of some suffixes can be written to a path.

    Raises:
        InvalidInput: The path has another suffix, its directory does not exist, or the file exists.
    """
    if path.suffix not in suffixes:
        raise InvalidInput(f"{path} has an unknown suffix; expected {', '.join(suffixes)}")
    if not path.parent.is_dir():
        raise InvalidInput(f"{path.parent} is not a directory; expected a directory for {path.name}")
    if path.is_dir():
        raise InvalidInput(f"{path} is a directory; expected the name of a file")
    if path.exists() and not overwrite:
        raise InvalidInput(f"{path} exists already; expected a new file, or overwrite to replace it")


def parse_metadata(text: str) -> dict[str, Any]:
    """Returns the metadata that an index stores as `text`. NaN, which JSON does not have, becomes None."""
    return json.loads(text, parse_constant=lambda _: None)


@contextmanager
def _open_atomically(path: Path, suffixes: Collection[str], overwrite: bool) -> Iterator[IO[bytes]]:
    """Yields a file that becomes `path` at the end, unless an error is raised."""
    require_writable(path, suffixes, overwrite=overwrite)
    try:
        with atomic_path(path, durable=True) as temporary:
            with temporary.open("wb") as file:
                yield file
            require_writable(path, suffixes, overwrite=overwrite)
    except OSError as error:
        raise InvalidInput(f"{path} cannot be written: {error}") from error


def _write_jsonl(rows: pa.RecordBatchReader, file: IO[bytes]) -> int:
    count = 0
    for batch in rows:
        for row in batch.to_pylist():
            for name in JSON_COLUMNS & row.keys():
                row[name] = parse_metadata(row[name]) if row[name] is not None else None
            line = json.dumps(row, ensure_ascii=False, allow_nan=False)
            # A lone surrogate cannot be encoded; backslashreplace writes it as JSON escapes it.
            file.write(line.encode(errors="backslashreplace") + b"\n")
        count += batch.num_rows
    return count


def _write_csv(rows: pa.RecordBatchReader, file: IO[bytes], *, escape_formulas: bool = False) -> int:
    # A lone surrogate cannot be encoded; JSON Lines escape it in the same way.
    with _as_text(file) as text:
        return write_csv(rows, text, escape_formulas=escape_formulas)


def write_csv(rows: pa.RecordBatchReader, text: IO[str], *, escape_formulas: bool = False) -> int:
    """Writes rows as CSV, in the form that `write_table` gives a `.csv` file, and returns how many there were."""
    count = 0
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(_csv_columns(rows.schema))
    for batch in rows:
        for row in batch.to_pylist():
            cells = (cell for field in rows.schema for cell in _csv_cells(field, row[field.name]))
            writer.writerow(map(_escape_formula, cells) if escape_formulas else cells)
        count += batch.num_rows
    return count


def _csv_columns(fields: Iterable[pa.Field], prefix: str = "") -> Iterator[str]:
    """Yields the names of the columns: that of each field, or those of the fields of a struct after its own."""
    for field in fields:
        name = f"{prefix}{field.name}"
        if pa.types.is_struct(field.type):
            yield from _csv_columns(field.type, f"{name}.")
        else:
            yield name


def _csv_cells(field: pa.Field, value: Any) -> Iterator[Any]:
    """Yields the cells of a value, one for each of its columns."""
    if pa.types.is_struct(field.type):
        for part in field.type:
            yield from _csv_cells(part, None if value is None else value[part.name])
        return
    if value is not None and field.name in JSON_COLUMNS:
        value = parse_metadata(value)
    yield json.dumps(value, ensure_ascii=False) if isinstance(value, list | dict | bool) else value


def _escape_formula(cell: Any) -> Any:
    """Returns a cell that no spreadsheet takes for a formula."""
    return f"'{cell}" if isinstance(cell, str) and cell.startswith(_FORMULA_STARTS) else cell


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


def _write_json_array(array: np.ndarray, file: IO[bytes]) -> None:
    if array.ndim < 2:
        file.write(json.dumps(array.tolist(), allow_nan=False).encode())
        return
    for number, row in enumerate(array):  # the text of one row at a time is in memory
        file.write(b", " if number else b"[")
        _write_json_array(row, file)
    file.write(b"]" if len(array) else b"[]")


def _write_npy(array: np.ndarray, file: IO[bytes]) -> None:
    np.save(file, array, allow_pickle=False)


_TABLE_WRITERS: Final[dict[str, Callable[[pa.RecordBatchReader, IO[bytes]], int]]] = {
    ".jsonl": _write_jsonl,
    ".csv": _write_csv,
    ".parquet": _write_parquet,
}
_ARRAY_WRITERS: Final[dict[str, Callable[[np.ndarray, IO[bytes]], None]]] = {
    ".json": _write_json_array,
    ".npy": _write_npy,
}
TABLE_SUFFIXES: Final = tuple(_TABLE_WRITERS)
"""Suffixes of the files that `write_table` writes."""
ARRAY_SUFFIXES: Final = tuple(_ARRAY_WRITERS)
"""Suffixes of the files that `write_array` writes."""
