"""What is wrong with the values that make a preference pair, found without a tokenizer."""

from collections.abc import Mapping
from typing import Any, Final

from bergson_core.schemas.inline_values import UnreadableValue
from bergson_core.schemas.record import find_chat_problem
from bergson_core.schemas.source import ColumnsSpec

_FORMS: Final = "expected both as texts, or both as lists of messages"


def find_pair_problem(document: Mapping[str, Any], columns: ColumnsSpec) -> tuple[str, str] | None:
    """Returns the first column of a preference pair with a wrong value.

    Args:
        document: The values of a row by column.
        columns: The columns, with `chosen` and `rejected`.

    Returns:
        The column, and what is wrong, as the end of a sentence about its value: a part is missing, empty, neither text
        nor a chat, or of another form than the others; both completions are the same; or a chat does not end with what
        the assistant says. None if nothing is wrong.
    """
    completions = [name for name in (columns.chosen, columns.rejected) if name is not None]
    parts = [*completions] if columns.prompt is None else [columns.prompt, *completions]
    for name in parts:
        if problem := _find_part_problem(document.get(name), is_completion=name in completions):
            return name, problem
    first, last = completions[0], completions[-1]
    forms = {name: isinstance(document[name], str) for name in parts}
    if len(set(forms.values())) > 1:
        shown = ", ".join(f"{name} is {'text' if is_text else 'a list'}" for name, is_text in forms.items())
        return first, f"has another form than the others: {shown}; {_FORMS}"
    if document[first] == document[last]:
        return first, f"is the same as {last!r}; expected two different completions"
    return None if forms[first] else _find_message_problem(document, parts, completions)


def _find_part_problem(value: Any, *, is_completion: bool) -> str | None:
    if isinstance(value, UnreadableValue):
        return value.reason
    if value is None:
        return "is null or missing, expected text or a list of messages"
    if not isinstance(value, str | list):
        return f"is {type(value).__name__}, expected text or a list of messages"
    return "is empty; expected a completion" if is_completion and not value else None


def _find_message_problem(
    document: Mapping[str, Any], parts: list[str], completions: list[str]
) -> tuple[str, str] | None:
    """Returns the first column of a pair of chats with a wrong message."""
    for name in parts:
        if document[name] and (problem := find_chat_problem(document[name])):
            return name, problem
    for name in completions:
        if (role := document[name][-1]["role"]) != "assistant":
            return name, f"ends with a message of {role!r}; expected one of the assistant"
    return None
