"""Rows as they are read from a file: a thousand at a time, as columns of values."""

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from bergson_core.errors import ColumnNotFound

CHUNK_ROWS: Final = 1000
"""Most rows of a chunk."""
CHUNK_BYTES: Final = 2**24
"""Size in the file from which on a chunk is complete."""
_MAX_LISTED_COLUMNS: Final = 50

Row = Mapping[str, Any]


@dataclass(frozen=True)
class RowChunk:
    """Rows that stand one after the other in a file.

    Attributes:
        source: Name of the file, for messages.
        first_row: Number of the first of these rows in the file, from 0.
        values: The values of each column that was asked for, as the file has them.
        data: The same values as data. They differ from `values` where a file has texts only: there a number is a text
            in `values` and a number in `data`.
    """

    source: str
    first_row: int
    values: Mapping[str, Sequence[Any]]
    data: Mapping[str, Sequence[Any]]

    def __len__(self) -> int:
        return len(next(iter(self.values.values())))

    def part(self, start: int, end: int) -> "RowChunk":
        """Returns the rows at the positions [start, end) of the chunk."""
        values, data = (
            {name: column[start:end] for name, column in columns.items()}
            for columns in (self.values, self.data)
        )
        return RowChunk(self.source, self.first_row + start, values, data)

    def with_nulls(self, names: Iterable[str]) -> "RowChunk":
        """Returns the rows with further columns that are null everywhere."""
        nulls = {name: [None] * len(self) for name in names}
        return RowChunk(self.source, self.first_row, {**self.values, **nulls}, {**self.data, **nulls})

    def describe(self, position: int, column: str) -> str:
        """Returns what stands at a position of the chunk, for messages."""
        return f"{self.source}: row {self.first_row + position} of column {column!r}"


def missing_column(source: str, name: str, present: Iterable[str]) -> ColumnNotFound:
    """Returns the error to raise where a column is missing."""
    listed = list(dict.fromkeys(present))
    more = f" and {len(listed) - _MAX_LISTED_COLUMNS} more" if len(listed) > _MAX_LISTED_COLUMNS else ""
    return ColumnNotFound(
        f"{source} has no column {name!r}; it has {', '.join(listed[:_MAX_LISTED_COLUMNS])}{more}. `columns` "
        "(--prompt_column, --id_column and so on) names the columns to read"
    )


class ObjectColumns:
    """Turns objects into columns. An object need not have every column, but some object has to, unless it is optional.

    Args:
        names: The columns to take.
        required: Those of them that every object needs. Whether each does is for the caller to check; here a column
            counts as missing if none of the first objects has it.
        source: Name of the dataset, for messages.
        optional: Those that no object needs to have.
    """

    def __init__(
        self, names: Sequence[str], required: Iterable[str], source: str, optional: Collection[str] = ()
    ) -> None:
        self._names, self._required, self._source = names, frozenset(required), source
        self._unseen = [name for name in names if name not in optional]
        self._present: dict[str, None] | None = None  # columns of the first objects

    def make_chunk(self, rows: Sequence[Row], source: str, first_row: int) -> RowChunk:
        """Returns the columns of some objects.

        Raises:
            ColumnNotFound: None of the first objects has a required column.
        """
        self._unseen = [name for name in self._unseen if not any(name in row for row in rows)]
        if self._present is None:
            self._present = {name: None for row in rows for name in row}
            for name in self._required.intersection(self._unseen):
                raise missing_column(self._source, name, self._present)
        values = {name: [row.get(name) for row in rows] for name in self._names}
        return RowChunk(source, first_row, values, values)

    def require_all(self) -> None:
        """Raises `ColumnNotFound` if none of the objects had one of the columns."""
        for name in self._unseen if self._present is not None else ():
            raise missing_column(self._source, name, self._present or ())


def group_rows(rows: Iterable[tuple[Any, int]]) -> Iterator[list[Any]]:
    """Groups rows into lists that are complete at `CHUNK_ROWS` or `CHUNK_BYTES`.

    Args:
        rows: Each row with its size in the file.
    """
    group: list[Any] = []
    size = 0
    for row, row_bytes in rows:
        group.append(row)
        size += row_bytes
        if len(group) >= CHUNK_ROWS or size >= CHUNK_BYTES:
            yield group
            group, size = [], 0
    if group:
        yield group
