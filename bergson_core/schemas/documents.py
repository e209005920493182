"""What became of documents that are not in an index as they stand in their dataset."""

from collections.abc import Sequence
from typing import Final

from bergson_core.schemas.base import ResultModel

MAX_LISTED: Final = 100
"""Largest number of documents that are listed one by one; all are counted."""


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
    """What is wrong with it."""


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
