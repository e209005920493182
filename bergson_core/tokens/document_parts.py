"""Documents that are not all rows of a dataset as they stand: some of them only, or parts of them.

Legend: n documents.
"""

from array import array
from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any

import numpy as np

from bergson_core.data.documents import Documents
from bergson_core.errors import InvalidInput
from bergson_core.schemas.documents import Chunk, chunk_id
from bergson_core.schemas.record import Record
from bergson_core.tokens.cutting import TextPart


@dataclass(frozen=True)
class DocumentSubset(Documents):
    """The documents of `source` at the positions `positions`. Their ids and errors name the dataset's own rows."""

    source: Documents | None = None
    positions: Sequence[int] = ()

    @classmethod
    def of(cls, source: Documents, positions: Sequence[int]) -> "DocumentSubset":
        """Returns the documents of `source` at these positions."""
        return cls(**_own_fields(source), source=source, positions=positions)

    def __len__(self) -> int:
        return len(self.positions)

    def read(self, indices: Sequence[int]) -> list[Record]:
        """Returns the records at these positions of the subset."""
        assert self.source is not None
        return self.source.read([self.positions[index] for index in indices])

    def read_ids(self, indices: Sequence[int]) -> list[str]:
        """Returns the ids at these positions of the subset."""
        assert self.source is not None
        return self.source.read_ids([self.positions[index] for index in indices])

    def row(self, index: int) -> int:
        """Returns the number of a document's row in the dataset."""
        assert self.source is not None
        return self.source.row(self.positions[index])


@dataclass
class PartTable:
    """Which parts of which documents are taken, 28 bytes for each, in order.

    Attributes:
        positions: Position of the document.
        starts, ends: Its characters [start, end); an end of -1 stands for the whole document.
        numbers: Number of the chunk, from 1; 0 for a document that keeps its id.
        counts: Number of chunks of the document.
    """

    positions: array = field(default_factory=lambda: array("q"))
    starts: array = field(default_factory=lambda: array("q"))
    ends: array = field(default_factory=lambda: array("q"))
    numbers: array = field(default_factory=lambda: array("i"))
    counts: array = field(default_factory=lambda: array("i"))

    def __len__(self) -> int:
        return len(self.positions)

    def add_whole(self, position: int) -> None:
        """Adds a document as it stands."""
        self._add(position, 0, -1, 0, 0)

    def add_beginning(self, position: int, part: TextPart) -> None:
        """Adds the beginning of a document, under the document's id."""
        self._add(position, part.start, part.end, 0, 1)

    def add_chunks(self, position: int, parts: Sequence[TextPart]) -> None:
        """Adds a document in parts with ids of their own."""
        for number, part in enumerate(parts, start=1):
            self._add(position, part.start, part.end, number, len(parts))

    def _add(self, position: int, start: int, end: int, number: int, count: int) -> None:
        columns = (self.positions, self.starts, self.ends, self.numbers, self.counts)
        for column, value in zip(columns, (position, start, end, number, count), strict=True):
            column.append(value)

    def is_everything(self, total: int) -> bool:
        """Returns whether the table is that of all of `total` documents, as they stand."""
        return len(self) == total and not any(self.counts)

    def to_bytes(self) -> bytes:
        """Returns the content, to be hashed."""
        columns = (self.positions, self.starts, self.ends, self.numbers, self.counts)
        return b"".join(column.tobytes() for column in columns)


@dataclass(frozen=True)
class DocumentParts(Documents):
    """The parts of the documents of `source` that `parts` lists."""

    source: Documents | None = None
    parts: PartTable = field(default_factory=PartTable)

    @classmethod
    def of(cls, source: Documents, parts: PartTable) -> "DocumentParts":
        """Returns these parts of the documents of `source`."""
        return cls(**_own_fields(source), source=source, parts=parts)

    def __len__(self) -> int:
        return len(self.parts)

    def read(self, indices: Sequence[int]) -> list[Record]:
        """Returns the records of these parts. Each document is read once, however many of its parts are asked for."""
        assert self.source is not None
        positions = np.unique([self.parts.positions[index] for index in indices]).tolist()
        records = dict(zip(positions, self.source.read(positions), strict=True))
        return [self._cut(records[self.parts.positions[index]], index) for index in indices]

    def read_ids(self, indices: Sequence[int]) -> list[str]:
        """Returns the ids of these parts."""
        ids = self.read_whole_ids(indices)
        return [chunk_id(id, self.parts.numbers[index]) for id, index in zip(ids, indices, strict=True)]

    def read_whole_ids(self, indices: Sequence[int]) -> list[str]:
        """Returns the ids of the documents that these are parts of."""
        assert self.source is not None
        return self.source.read_ids([self.parts.positions[index] for index in indices])

    def row(self, index: int) -> int:
        """Returns the number of the dataset's row that a part is of."""
        assert self.source is not None
        return self.source.row(self.parts.positions[index])

    def require_distinct_ids(self) -> None:
        """Raises `InvalidInput` if a chunk would get the id of another document of the dataset."""
        if self.source is None or self.columns.id is None:
            return  # row numbers have no # in them
        chunks = [index for index, number in enumerate(self.parts.numbers) if number]
        chunk_ids = set(self.read_ids(chunks)) if chunks else set()
        for ids in self.source.iter_ids() if chunk_ids else ():
            if taken := chunk_ids.intersection(ids):
                raise InvalidInput(
                    f"{self.name}: a document is cut into chunks, of which one would get the id {min(taken)!r}, and "
                    f"another document has this id already in column {self.columns.id!r}; expected other ids"
                )

    def _cut(self, record: Record, index: int) -> Record:
        parts = self.parts
        start, end, count = parts.starts[index], parts.ends[index], parts.counts[index]
        if end < 0:
            return record
        chunk = Chunk(document=record.id, start=start, end=end, count=count)
        part_id = chunk_id(record.id, parts.numbers[index])
        return replace(record, id=part_id, prompt=record.prompt[start:end], chunk=chunk)


def _own_fields(documents: Documents) -> dict[str, Any]:
    """Returns the fields that all kinds of documents have."""
    return {field.name: getattr(documents, field.name) for field in fields(Documents)}
