"""What is wrong with documents that come in a request, found before a job is queued for them."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from bergson_core.schemas.documents import find_id_value_problem
from bergson_core.schemas.inline_values import UnreadableValue
from bergson_core.schemas.source import ColumnsSpec
from bergson_core.schemas.validation.bounded_errors import short_repr


def find_inline_problem(
    documents: Sequence[Mapping[str, Any]], columns: ColumnsSpec, *, skips_bad: bool
) -> tuple[tuple[int, str], str] | None:
    """Returns the first wrong id or text of some documents.

    Args:
        documents: The documents: objects with the columns that `columns` names.
        columns: The columns and what they hold.
        skips_bad: Whether documents that cannot be indexed are left out. Ids have to be unique all the same.

    Returns:
        The number of the document and the column, and what is wrong there; None if nothing is.
    """
    first_numbers: dict[str, int] = {}
    for number, document in enumerate(documents):
        for column, problem in _find_problems(document, columns):
            if not skips_bad:
                return (number, column), problem
        if columns.id is None or find_id_value_problem(document.get(columns.id)):
            continue
        document_id = str(document[columns.id])
        if (first := first_numbers.setdefault(document_id, number)) != number:
            problem = f"documents.{first} has the id {short_repr(document_id)} too; ids have to be unique"
            return (number, columns.id), problem
    return None


def _find_problems(document: Mapping[str, Any], columns: ColumnsSpec) -> Iterator[tuple[str, str]]:
    """Yields each column of a document whose value is no id or no text, with what is wrong about it."""
    if columns.id is not None and (problem := find_id_value_problem(document.get(columns.id))):
        yield columns.id, f"the id {problem}"
    for column in _text_columns(columns):
        value = document.get(column)
        if isinstance(value, UnreadableValue):
            yield column, f"the text {value.reason}"
        elif not isinstance(value, str):
            names = ", ".join(map(short_repr, list(document)[:10])) or "no column"
            came = f"got {short_repr(value)}" if column in document else f"the document has {names}"
            yield column, f"expected text in the column {short_repr(column)}; {came}"


def _text_columns(columns: ColumnsSpec) -> list[str]:
    """Returns the columns that hold texts. Chats and preference pairs are left to the worker."""
    if columns.messages is not None or columns.chosen is not None:
        return []
    return [column for column in (columns.prompt, columns.completion) if column is not None]
