"""How the words of a result compare with those of the question."""

from bergson_core.schemas.base import ResultModel


class WordMatch(ResultModel):
    """How the words of a document compare with those of a question. Case, white space and punctuation do not count."""

    rank: int | None
    """Place of the document by BM25 among all documents that meet the filter, from 1; documents of the same score share
    it. Null for a document that shares no word with the question."""
    score: float
    """BM25 score of the document for the words of prompt and completion, or of all messages of a chat."""
    states: bool
    """Whether the document contains the words of the completion, or of its span, one after another."""
