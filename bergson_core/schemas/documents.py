"""What an id of a document may be, and what became of documents that are not in an index as in their dataset."""

import re
from collections.abc import Sequence
from typing import Any, Final

from bergson_core.schemas.base import ResultModel
from bergson_core.schemas.inline_values import UnreadableValue
from bergson_core.schemas.validation.bounded_errors import short_repr

MAX_ID_CHARACTERS: Final = 4096
_NO_ID_CHARACTER: Final = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")
_NO_IDS: Final = frozenset({"", ".", ".."})
MAX_LISTED: Final = 100
"""Largest number of documents that are listed one by one; all are counted."""


def find_id_problem(document_id: str) -> str | None:
    """Returns why a text cannot be the id of a document: the end of a sentence about it. None if it can be.

    An id is text of 1 to 4,096 characters without control characters and line breaks. It is compared character by
    character. As a segment of the path of a URL, percent-encoded, it names the document in every call of the service,
    which is why it cannot be `.` or `..`: these lead to other paths, also when they are encoded.
    """
    if document_id in _NO_IDS:
        return "is empty" if not document_id else f"is {document_id!r}, which leads to another path in a URL"
    if len(document_id) > MAX_ID_CHARACTERS:
        return f"has {len(document_id):,} characters, and an id at most {MAX_ID_CHARACTERS:,}"
    if match := _NO_ID_CHARACTER.search(document_id):
        kind = (
            "half of a surrogate pair"
            if "\ud800" <= match[0] <= "\udfff"
            else "a control character or line break"
        )
        return f"holds {kind} (U+{ord(match[0]):04X}) at position {match.start():,}"
    return None


def find_id_value_problem(value: Any) -> str | None:
    """Returns why a value of an id column is no id: the end of a sentence about it. None if it is one."""
    if value is None:
        return "is null or missing, expected an id"
    if isinstance(value, UnreadableValue):
        return value.reason
    if isinstance(value, bool) or not isinstance(value, str | int):
        return f"is {short_repr(value)}; expected an id that is text or an integer"
    if problem := find_id_problem(str(value)):
        return (
            f"{problem}; expected an id of 1 to {MAX_ID_CHARACTERS:,} characters, without control characters and line "
            f"breaks, got {short_repr(value)}"
        )
    return None


def chunk_id(document_id: str, number: int) -> str:
    """Returns the id of a chunk, counted from 1; with 0, that of the document itself."""
    return f"{document_id}#{number}" if number else document_id


class Chunk(ResultModel):
    """A part of a document that was too long."""

    document: str
    """Id of the whole document."""
    start: int
    """The chunk's text is the characters [start, end) of the document."""
    end: int
    """See `start`."""
    count: int
    """Number of chunks that the document was cut into; 1 if only its beginning was kept."""


class LeftOutDocument(ResultModel):
    """A document that could not be indexed."""

    id: str
    """Its id; `row N` where it has none."""
    row: int
    """Number of its row in the dataset."""
    reason: str
    """The problem with the field."""


class DocumentReport(ResultModel):
    """How many documents are not in the index as they stand in the dataset, and why."""

    left_out: int = 0
    """Documents that `on_bad_document` skip left out."""
    first_left_out: tuple[LeftOutDocument, ...] = ()
    """The first 100 of them."""
    truncated: int = 0
    """Documents of which only the beginning is in the index."""
    chunked: int = 0
    """Documents that were cut into chunks."""

    def plus(self, other: "DocumentReport") -> "DocumentReport":
        """Returns the report about both."""
        return DocumentReport(
            left_out=self.left_out + other.left_out,
            first_left_out=(*self.first_left_out, *other.first_left_out)[:MAX_LISTED],
            truncated=self.truncated + other.truncated,
            chunked=self.chunked + other.chunked,
        )

    def sentences(self) -> Sequence[str]:
        """Returns a line for each kind of document that there is, for people."""
        sentences = []
        if self.left_out:
            first = self.first_left_out[:3]
            named = "; ".join(
                f"{document.id!r} (row {document.row}): {document.reason}" for document in first
            )
            more = f"; and {self.left_out - 3:,} more" if self.left_out > 3 else ""
            sentences.append(f"documents left out: {self.left_out:,}. {named}{more}")
        if self.truncated:
            sentences.append(
                f"documents that are too long, of which only the beginning is indexed: {self.truncated:,}"
            )
        if self.chunked:
            sentences.append(f"documents that are too long, and are cut into chunks: {self.chunked:,}")
        return sentences
