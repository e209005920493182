"""What the values of a column of documents may be: texts, ids, weights, chats and JSON values.

Text is what the file says: an id, a prompt or a completion is never converted to something else, metadata and messages
are JSON values, and what cannot be kept exactly is refused.
"""

import math
from collections.abc import Callable, Sequence
from datetime import date, datetime, time
from decimal import Decimal
from types import NoneType
from typing import Any, Final
from uuid import UUID

from bergson_core.errors import InvalidInput
from bergson_core.schemas.documents import find_id_value_problem
from bergson_core.schemas.inline_values import EXPECTED_KINDS, UnreadableValue
from bergson_core.schemas.record import Messages, drop_nulls, find_chat_problem, parse_chat

Describe = Callable[[int, str], str]
"""(position, column) → what stands there, for messages."""
_MAX_SHOWN: Final = 60
_KINDS: Final[dict[type, str]] = {
    str: "text",
    bool: "a truth value",
    int: "a number",
    float: "a number",
    list: "a list",
    dict: "an object",
}
_UNCHANGED: Final = frozenset({NoneType, str, bool, int})


def require_readable(values: Sequence[Any], column: str, describe: Describe) -> None:
    """Raises `InvalidInput` if JSON cannot hold one of the values. What lists and objects contain is not looked at."""
    if UnreadableValue in set(map(type, values)):
        for position, value in enumerate(values):
            if isinstance(value, UnreadableValue):
                raise InvalidInput(f"{describe(position, column)} {value.reason}")


def require_texts(values: Sequence[Any], column: str, describe: Describe) -> list[str]:
    """Returns the values of a column of text.

    Raises:
        InvalidInput: A value is not text, or is null or missing.
    """
    if any(type(value) is not str for value in values):
        for position, value in enumerate(values):
            if value is None:
                raise InvalidInput(f"{describe(position, column)} is null or missing, expected text")
            if not isinstance(value, str):
                raise InvalidInput(f"{describe(position, column)} is {type(value).__name__}, expected text")
    return list(values)


def require_ids(values: Sequence[Any], column: str, describe: Describe) -> list[str]:
    """Returns the ids in a column, integers as text.

    Raises:
        InvalidInput: An id is null or missing, neither text nor an integer, or no id
            (`schemas.documents.find_id_value_problem`).
    """
    for position, value in enumerate(values):
        if problem := find_id_value_problem(value):
            raise InvalidInput(f"{describe(position, column)} {problem}")
    return [str(value) for value in values]


def require_weights(values: Sequence[Any], column: str, describe: Describe) -> list[float]:
    """Returns the numbers in a column of weights.

    Raises:
        InvalidInput: A value is not a finite number.
    """
    weights = []
    for position, value in enumerate(values):
        is_number = isinstance(value, int | float | Decimal) and not isinstance(value, bool)
        try:
            weight = float(value) if is_number else math.nan
        except OverflowError:
            weight = math.inf
        if not math.isfinite(weight):
            raise InvalidInput(f"{describe(position, column)} is {_show(value)}, expected a finite number")
        weights.append(weight)
    return weights


def require_chats(values: Sequence[Any], column: str, describe: Describe) -> list[Messages]:
    """Returns the chats in a column, which may also be given as JSON text, without fields that are null.

    Raises:
        InvalidInput: A value is not a list of messages that each have a role.
    """
    chats = [parse_chat(value) for value in values]
    for position, chat in enumerate(chats):
        if problem := find_chat_problem(chat):
            raise InvalidInput(f"{describe(position, column)} {problem}")
    return [drop_nulls(chat) for chat in chats]


def require_json_values(values: Sequence[Any], column: str, describe: Describe) -> list[Any]:
    """Returns the values of a column of metadata as JSON values.

    Dates and times become ISO 8601 text, decimals become numbers, and NaN, which JSON does not have, becomes None.

    Raises:
        InvalidInput: A value is of another type, is infinite, or is a decimal with more digits than a float has.
    """
    converted = []
    for position, value in enumerate(values):
        try:
            converted.append(_to_json_value(value))
        except ValueError as error:
            raise InvalidInput(f"{describe(position, column)} {error}") from None
        except RecursionError:
            raise InvalidInput(f"{describe(position, column)} is nested too deeply") from None
    return converted


class ValueKinds:
    """The kind of value that each metadata column holds, from the first value that is not null.

    One column holds text, numbers, truth values, lists or objects, so that a filter or a total has one meaning.
    """

    def __init__(self) -> None:
        self._kinds: dict[str, tuple[str, str]] = {}  # column → (kind, where its first value stands)

    def require_same(self, values: Sequence[Any], column: str, describe: Describe) -> None:
        """Checks that values are of the kind that the column's earlier values have.

        Raises:
            InvalidInput: A value is of another kind. The message names both places.
        """
        types = set(map(type, values)) - {NoneType}
        if column in self._kinds and all(_KINDS[kind] == self._kinds[column][0] for kind in types):
            return
        for position, value in enumerate(values):
            if value is None:
                continue
            kind = _KINDS[type(value)]
            if column not in self._kinds:
                self._kinds[column] = kind, describe(position, column)
            expected, first = self._kinds[column]
            if kind != expected:
                raise InvalidInput(
                    f"{describe(position, column)} is {kind} ({_show(value)}), but {first} is {expected}; expected "
                    "one type in a column"
                )


def _to_json_value(value: Any) -> Any:
    """Returns a value as JSON has it. Raises `ValueError` with the end of a sentence about the value."""
    if type(value) in _UNCHANGED:
        return value
    match value:
        case float():
            if math.isinf(value):
                raise ValueError("is infinite or beyond 64-bit floating point, expected a finite number")
            return None if math.isnan(value) else float(value)
        case list() | tuple():
            return [_to_json_value(item) for item in value]
        case dict():
            return {_require_key(key): _to_json_value(item) for key, item in value.items()}
        case datetime() | date() | time():
            return value.isoformat()
        case Decimal():
            return _decimal_to_number(value)
        case UUID():
            return str(value)
        case UnreadableValue():
            raise ValueError(value.reason)
    raise ValueError(f"is {type(value).__name__}; {EXPECTED_KINDS}")


def _require_key(key: Any) -> str:
    if not isinstance(key, str):
        raise ValueError(f"has the key {_show(key)}; expected keys that are text")
    return key


def _decimal_to_number(value: Decimal) -> int | float:
    if value == value.to_integral_value():
        return int(value)
    if Decimal(repr(float(value))) != value:
        raise ValueError(f"is {value}, which has more digits than a number can hold; expected it as text")
    return float(value)


def _show(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= _MAX_SHOWN else f"{text[:_MAX_SHOWN]}…"
