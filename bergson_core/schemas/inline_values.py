"""The values of documents that come as Python objects, as JSON has them.

Specs are stored, hashed and compared as JSON. Rows of NumPy and pandas hold scalars that JSON does not know, and a
column that no build asks for may hold anything. What JSON cannot hold is replaced by an `UnreadableValue`, so that it
is an error only where the column is asked for.
"""

from datetime import date, datetime, time
from decimal import Decimal
from types import NoneType
from typing import Any, Final, Self
from uuid import UUID

from pydantic import ValidationInfo

MAX_INTEGER_DIGITS: Final = 4300
"""Python refuses to read or write longer integers."""
SURROGATE_REASON: Final = (
    "holds half of a surrogate pair, which is not a character; expected text that UTF-8 can hold"
)
EXPECTED_KINDS: Final = "expected text, a number, a truth value, a date, a list or an object"
PARSED_JSON: Final = {"parsed_json": True}
"""Context of a validation whose input was just parsed from JSON: nobody else holds it, and JSON can hold all of it."""
_MAX_DEPTH: Final = 190
"""Pydantic reads JSON of at most 200 levels; a manifest and a job have some above the value."""
_INTEGER_BOUND: Final = 10**MAX_INTEGER_DIGITS
_PLAIN: Final = frozenset({NoneType, bool, float})
_MISSING: Final = frozenset({"NAType", "NaTType"})  # of pandas


class UnreadableValue(str):
    """Stands in place of a value that JSON cannot hold. As JSON it is a text that names the kind of value.

    Attributes:
        reason: Why it cannot be read: the end of a sentence about the value.
    """

    reason: str

    def __new__(cls, text: str, reason: str) -> Self:
        """Makes the text, and notes the reason."""
        value = super().__new__(cls, text)
        value.reason = reason
        return value

    def __reduce__(self) -> tuple[type[Self], tuple[str, str]]:
        """Returns how to make the value again where it is unpickled, as on the machines of a cluster."""
        return type(self), (str(self), self.reason)


def huge_integer(digits: int | None = None) -> UnreadableValue:
    """Returns what stands in place of an integer with more than `MAX_INTEGER_DIGITS` digits."""
    count = f"{digits:,}" if digits else f"more than {MAX_INTEGER_DIGITS:,}"
    return UnreadableValue(
        f"<integer of {count} digits>",
        f"is an integer of {count} digits; expected at most {MAX_INTEGER_DIGITS:,}, or text",
    )


def plain_document(document: dict[str, Any], info: ValidationInfo) -> dict[str, Any]:
    """Returns a document of a spec by `make_plain`, or as it is where it comes from JSON."""
    if info.context is not PARSED_JSON:
        return make_plain(document)
    if _is_deeper(document, _MAX_DEPTH + 1):
        raise _too_deep()
    return document


def _is_deeper(value: Any, levels: int) -> bool:
    """Returns whether a JSON value has more than so many levels of lists and objects."""
    if not isinstance(value, dict | list):
        return False
    items = value.values() if isinstance(value, dict) else value
    return levels == 0 or any(_is_deeper(item, levels - 1) for item in items if type(item) in (dict, list))


def _too_deep() -> ValueError:
    return ValueError(f"a value is nested too deeply; expected at most {_MAX_DEPTH} levels")


def make_plain(document: dict[str, Any]) -> dict[str, Any]:
    """Returns a document with values that JSON can hold: NumPy's scalars and arrays become numbers, texts and lists.

    Dates, decimals and UUIDs stay, because JSON has a text for them.

    Raises:
        ValueError: A value is nested too deeply for JSON to be read again.
    """
    return {name: _plain(value, 0) for name, value in document.items()}


def _plain(value: Any, depth: int) -> Any:
    if type(value) in _PLAIN or isinstance(value, UnreadableValue):
        return value
    if depth > _MAX_DEPTH:
        raise _too_deep()
    if hasattr(value, "dtype") and hasattr(value, "tolist"):
        return _plain_numpy(value, depth)
    match value:
        case str():
            return _plain_text(value)
        case int():
            return int(value) if abs(value) < _INTEGER_BOUND else huge_integer()
        case float():
            return float(value)
        case list() | tuple():
            return [_plain(item, depth + 1) for item in value]
        case dict():
            return _plain_object(value, depth)
        case _ if type(value).__name__ in _MISSING:
            return None
        case datetime() | date() | time() | Decimal() | UUID():
            return value
    return _unreadable(value)


def _plain_numpy(value: Any, depth: int) -> Any:
    """Returns a scalar or an array of NumPy as Python has it."""
    if getattr(value, "shape", None) == () and value.dtype.kind == "f":
        return float(str(value))  # 0.1 in float32 is 0.1, and not 0.10000000149011612
    converted = value.tolist()
    return (
        _unreadable(value)
        if hasattr(converted, "dtype") or value.dtype.kind in "mM"
        else _plain(converted, depth)
    )


def _plain_text(value: str) -> str:
    text = str(value)
    try:
        text.encode()
    except UnicodeEncodeError:
        return UnreadableValue(text.encode("utf-8", "backslashreplace").decode(), SURROGATE_REASON)
    return text


def _plain_object(value: dict[Any, Any], depth: int) -> Any:
    for key in value:
        if not isinstance(key, str):
            return UnreadableValue("<object>", f"has the key {str(key)[:60]}; expected keys that are text")
        if isinstance(_plain_text(key), UnreadableValue):
            return UnreadableValue("<object>", f"has a key that {SURROGATE_REASON}")
    return {str(key): _plain(item, depth + 1) for key, item in value.items()}


def _unreadable(value: Any) -> UnreadableValue:
    name = type(value).__name__
    return UnreadableValue(f"<{name}>", f"is {name}; {EXPECTED_KINDS}")
