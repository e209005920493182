"""Keeps the errors of a large value that is wrong few, so that it is refused at once.

Pydantic makes an error of each wrong item and each unknown field. For a megabyte of them that takes seconds, and up to
a gigabyte of memory. Here the length of a field is checked before its items, a list ends after `MAX_LIST_ERRORS`, and
of unknown fields only the first are reported.
"""

import reprlib
from collections.abc import Callable, Mapping, Sized
from itertools import islice
from typing import Any, Final

from annotated_types import MaxLen
from pydantic import ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import InitErrorDetails, PydanticKnownError

from bergson_core.schemas.validation.plain_messages import as_line_error

MAX_LIST_ERRORS: Final = 1000
"""About as many errors of the items of a list are reported; and those of about as many items after the first error."""
MAX_UNKNOWN_FIELDS: Final = 100
"""Most unknown fields of an object that are reported one by one."""
_MAX_REPR_CHARACTERS: Final = 200
_LIST_SCHEMAS: Final = frozenset({"list", "tuple", "set", "frozenset"})


class _ShortRepr(reprlib.Repr):
    """Formats no more of a value than is shown, however long, wide or deep the value is."""

    def __init__(self) -> None:
        super().__init__()
        self.maxstring = self.maxother = self.maxlong = _MAX_REPR_CHARACTERS

    def repr_int(self, x: int, level: int) -> str:
        try:
            return super().repr_int(x, level)
        except ValueError:  # Python writes no integer of more than 4,300 digits
            return f"<integer of {x.bit_length():,} bits>"


_SHORT_REPR: Final = _ShortRepr()


def short_repr(value: Any, max_characters: int = 100) -> str:
    """Returns the beginning of the `repr` of a value, for a message that says what came."""
    return _SHORT_REPR.repr(value)[:max_characters]


def require_max_length(value: Any, field: FieldInfo) -> None:
    """Raises pydantic's own error for a value that is longer than its field allows."""
    limits = [limit.max_length for limit in field.metadata if isinstance(limit, MaxLen)]
    if limits and isinstance(value, Sized) and len(value) > min(limits):
        kind = "string_too_long" if isinstance(value, str) else "too_long"
        details = {"field_type": "List", "max_length": min(limits), "actual_length": len(value)}
        raise PydanticKnownError(kind, details)  # pyright: ignore[reportArgumentType]


def require_few_unknown_fields(fields: Any, known: Mapping[str, FieldInfo], title: str) -> None:
    """Raises the errors of the first unknown fields of an object that has many."""
    if isinstance(fields, Mapping) and len(fields) > len(known) + MAX_UNKNOWN_FIELDS:
        unknown = islice((name for name in fields if name not in known), MAX_UNKNOWN_FIELDS)
        errors = [
            InitErrorDetails(type="extra_forbidden", loc=(str(name),), input=fields[name]) for name in unknown
        ]
        raise ValidationError.from_exception_data(title, errors)


def bound_errors_of_lists(schema: Any) -> None:
    """Changes a core schema of pydantic so that each list in it ends after `MAX_LIST_ERRORS`."""
    if isinstance(schema, list):
        for part in schema:
            bound_errors_of_lists(part)
    if not isinstance(schema, dict):
        return
    for part in list(schema.values()):
        bound_errors_of_lists(part)
    is_positional = schema.get("type") == "tuple" and "variadic_item_index" not in schema
    if schema.get("type") in _LIST_SCHEMAS and not is_positional and not schema.get("fail_fast"):
        items = {**schema, "fail_fast": True}
        schema.clear()
        function = {"type": "no-info", "function": _validate_items}
        schema.update({"type": "function-wrap", "function": function, "schema": items})


def _validate_items(value: Any, validate: Callable[[Any], Any]) -> Any:
    """Validates a list by `validate`, which stops at the first wrong item, and looks for some more of them."""
    try:
        return validate(value)
    except ValidationError as error:
        errors, title = _item_errors(error, 0), error.title
        if not errors:  # it is no list, or its length is wrong
            raise
    start = errors[-1]["loc"][0] + 1
    end = start + MAX_LIST_ERRORS
    while start < min(end, len(value)) and len(errors) < MAX_LIST_ERRORS:
        try:
            validate(value[start:end])
            break
        except ValidationError as error:
            errors += _item_errors(error, start)
        start = errors[-1]["loc"][0] + 1
    line_errors = list(map(as_line_error, errors))
    del errors
    raise ValidationError.from_exception_data(title, line_errors)


def _item_errors(error: ValidationError, start: int) -> list[Any]:
    """Returns the errors of the items of a list that begins with the item `start`, but none of its length."""
    return [
        {**details, "loc": (start + int(details["loc"][0]), *details["loc"][1:])}
        for details in error.errors(include_url=False)
        if details["loc"]
    ]
