"""What a caller who may see no text gets of an answer: the fields that are listed here, and no others.

A field that somebody adds to an answer is withheld from such callers until it is listed, so that no text leaks because
nobody thought of these callers.
"""

from typing import Final, TypeVar

from pydantic import BaseModel

from bergson_core.schemas.results import Answer, ResultRow

AnswerType = TypeVar("AnswerType", bound=Answer)
Model = TypeVar("Model", bound=BaseModel)

OPEN_ANSWER_FIELDS: Final = frozenset(
    {
        "index",
        "generation",
        "profile",
        "request_id",
        "query",  # what the caller has asked, or whoever has made the link
        "results",
        "opponents",
        "notice",
        "background",
        "warnings",  # about the query
        "rescored",
        "verification",
        "partial",
        "timing_ms",
    }
)
"""Fields of an answer that hold no text of a document."""
OPEN_ROW_FIELDS: Final = frozenset(
    {
        "rank",
        "id",
        "score",
        "exact",
        "interval",
        "strength",
        "percentile",
        "loss",
        "modules",
        "chunk",
        "verified",
    }
)
"""Fields of a result that neither hold a document's text or metadata nor tell anything about them."""


def without_texts(answer: AnswerType) -> AnswerType:
    """Returns an answer without the texts and the metadata of documents: all fields that are not listed are empty."""
    lists = {
        name: None if rows is None else [without_row_texts(row) for row in rows]
        for name, rows in (("results", answer.results), ("opponents", answer.opponents))
    }
    return _restrict(answer, OPEN_ANSWER_FIELDS).model_copy(update=lists)


def without_row_texts(row: ResultRow) -> ResultRow:
    """Returns a result without the text and the metadata of its document, and its group without the value."""
    return _restrict(row, OPEN_ROW_FIELDS).model_copy(
        update={"group": row.group and row.group.without_value()}
    )


def _restrict(model: Model, names: frozenset[str]) -> Model:
    """Returns a model whose other fields have their default values."""
    defaults = {
        name: field.get_default(call_default_factory=True)
        for name, field in type(model).model_fields.items()
        if name not in names
    }
    return model.model_copy(update=defaults)
