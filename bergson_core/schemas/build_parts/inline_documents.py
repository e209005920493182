"""What is wrong with documents that come in a request, found before a job is queued for them."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from bergson_core.schemas.build_parts.pair_values import find_pair_problem
from bergson_core.schemas.documents import find_id_value_problem
from bergson_core.schemas.inline_values import UnreadableValue
from bergson_core.schemas.record import find_chat_problem, parse_chat
from bergson_core.schemas.source import ColumnsSpec
from bergson_core.schemas.validation.bounded_errors import short_repr


def find_inline_problem(
    documents: Sequence[Mapping[str, Any]], columns: ColumnsSpec, *, skips_bad: bool
) -> tuple[tuple[int, str], str] | None:
    """Returns the first wrong id, text, chat or preference pair of some documents.

    Args:
        documents: The documents: objects with the columns that `columns` names.
        columns: The columns and what they hold.
        skips_bad: Whether documents that cannot be indexed are left out. Ids must be unique all the same.

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
            problem = f"documents.{first} has the id {short_repr(document_id)} too; ids must be unique"
            return (number, columns.id), problem
    return None


def _find_problems(document: Mapping[str, Any], columns: ColumnsSpec) -> Iterator[tuple[str, str]]:
    """Yields each column of a document whose value is no id, text, chat or part of a pair, with what is wrong."""
    if columns.id is not None and (problem := find_id_value_problem(document.get(columns.id))):
        yield columns.id, f"the id {problem}"
    if columns.chosen is not None:
        if found := find_pair_problem(document, columns):
            yield found[0], f"the value {found[1]}"
    elif columns.messages is not None:
        if problem := _find_chat_problem(document.get(columns.messages)):
            yield columns.messages, f"the value {problem}"
    else:
        for column in (columns.prompt, columns.completion):
            if column is not None and (problem := _find_text_problem(document, column)):
                yield column, problem


def _find_chat_problem(value: Any) -> str | None:
    return value.reason if isinstance(value, UnreadableValue) else find_chat_problem(parse_chat(value))


def _find_text_problem(document: Mapping[str, Any], column: str) -> str | None:
    value = document.get(column)
    if isinstance(value, UnreadableValue):
        return f"the text {value.reason}"
    if isinstance(value, str):
        return None
    names = ", ".join(map(short_repr, list(document)[:10])) or "no column"
    came = f"got {short_repr(value)}" if column in document else f"the document has {names}"
    return f"expected text in the column {short_repr(column)}; {came}"
