"""Reads CSV and TSV files. A cell is the text that stands in the file; in columns of data, numbers are numbers.

A column of metadata is a column of numbers if every cell that is not empty is a number in the shortest form that gives
it, as 7 and 0.5 are, but not 007, 1.50, 1e5 or NA. So a number can always be written back as the file has it.
"""

import csv
import re
from collections.abc import Iterator, Sequence
from typing import Final

from bergson_core.data.files.paths import DataFile
from bergson_core.data.files.text_lines import MAX_LINE_BYTES, iter_text_lines, unreadable
from bergson_core.data.row_chunks import RowChunk, group_rows, missing_column

_DELIMITERS: Final = {"csv": ",", "tsv": "\t"}
_INTEGER: Final = re.compile(r"[+-]?\d+", re.ASCII)
_NUMBER: Final = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?", re.ASCII)
_MAX_DIGITS: Final = 4000
"""Python refuses to parse longer integers."""

Cells = Sequence[str]


def iter_csv_chunks(
    files: Sequence[DataFile], names: Sequence[str], data_names: Sequence[str], number_names: Sequence[str]
) -> Iterator[RowChunk]:
    """Yields the rows of CSV files.

    Args:
        files: The files. They are read twice if there are columns of data.
        names: The columns to read.
        data_names: Those of them that hold numbers where all files have numbers in them.
        number_names: The columns that have to hold numbers, which need not have their shortest form.

    Raises:
        ColumnNotFound: A file lacks a column.
        DatasetNotFound: A file is no CSV file in UTF-8. The message names the line.
    """
    number_columns = _find_number_columns(files, data_names)
    for file in files:
        first_row = 0
        for rows in group_rows(_iter_rows(file, names)):
            columns = dict(zip(names, zip(*rows, strict=True), strict=True))
            data = {name: [parse_number(cell) for cell in columns[name]] for name in number_columns}
            for name in number_names:
                data[name] = [parse_number(cell.strip()) for cell in columns[name]]
            yield RowChunk(str(file.path), first_row, columns, {**columns, **data})
            first_row += len(rows)


def read_csv_header(file: DataFile) -> list[str]:
    """Returns the names of the columns of a CSV file, none if the file is empty."""
    return next(_iter_records(file), (0, []))[1]


def parse_number(cell: str) -> int | float | str | None:
    """Returns the number that a cell holds, None if the cell is empty, and the text if it is not a number."""
    if not cell:
        return None
    if len(cell) > _MAX_DIGITS or not _NUMBER.fullmatch(cell):
        return cell
    return int(cell) if _INTEGER.fullmatch(cell) else float(cell)


def _is_canonical_number(cell: str) -> bool:
    value = parse_number(cell)
    return not isinstance(value, str) and (value is None or repr(value) == cell)


def _find_number_columns(files: Sequence[DataFile], names: Sequence[str]) -> list[str]:
    """Returns those columns in which every cell that is not empty is a number in its shortest form, at least one."""
    candidates, filled = list(names), set[str]()
    for file in files if candidates else ():
        for rows in group_rows(_iter_rows(file, names)):
            columns = dict(zip(names, zip(*rows, strict=True), strict=True))
            candidates = [name for name in candidates if all(map(_is_canonical_number, columns[name]))]
            filled.update(name for name in candidates if any(columns[name]))
            if not candidates:
                return []
    return [name for name in candidates if name in filled]


def _iter_rows(file: DataFile, names: Sequence[str]) -> Iterator[tuple[Cells, int]]:
    """Yields the cells of these columns, with their size."""
    records = _iter_records(file)
    _, header = next(records, (0, None))
    if header is None:
        return
    for name in names:
        if name not in header:
            raise missing_column(str(file.path), name, header)
        if header.count(name) > 1:
            raise unreadable(file, f"its header has the column {name!r} {header.count(name)} times")
    positions = [header.index(name) for name in names]
    for line, record in records:
        if len(record) != len(header):
            raise unreadable(
                file, f"line {line} has {len(record)} fields; expected {len(header)}, as the header has"
            )
        cells = [record[position] for position in positions]
        yield cells, sum(map(len, cells))


def _advise(error: str) -> str:
    """Returns what was expected, for an error of the csv module."""
    if "end of data" in error or "field limit" in error:
        return "expected a quote at the end of the field that begins with one"
    if "new-line" in error:
        return "expected lines that end in LF or CR LF, and not in CR alone"
    return "expected quotes around a field that holds quotes"


def _iter_records(file: DataFile) -> Iterator[tuple[int, list[str]]]:
    """Yields the header and the rows, each with the number of its first line. Blank lines are left out."""
    csv.field_size_limit(MAX_LINE_BYTES)
    reader = csv.reader(iter_text_lines(file), delimiter=_DELIMITERS[file.format], strict=True)
    while True:
        line = reader.line_num + 1
        try:
            record = next(reader, None)
        except csv.Error as error:
            raise unreadable(file, f"line {line}: {error}; {_advise(str(error))}") from None
        if record is None:
            return
        if record:
            yield line, record
