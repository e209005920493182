"""Words for what pydantic finds wrong: each message says what was expected, in terms of JSON."""

from collections.abc import Mapping
from difflib import get_close_matches
from typing import Any, Final

from pydantic import ValidationError
from pydantic_core import InitErrorDetails, PydanticCustomError

_TEMPLATES: Final = {
    "missing": "required, but missing",
    "extra_forbidden": "no such field",
    "none_required": "expected null, or no such field",
    "string_type": "expected text",
    "string_pattern_mismatch": "expected text that matches {pattern}",
    "string_too_short": "expected at least {min_length} characters",
    "string_too_long": "expected at most {max_length} characters",
    "literal_error": "expected {expected}",
    "int_type": "expected an integer",
    "int_parsing": "expected an integer",
    "int_from_float": "expected an integer",
    "float_type": "expected a number",
    "float_parsing": "expected a number",
    "finite_number": "expected a finite number",
    "bool_type": "expected true or false",
    "bool_parsing": "expected true or false",
    "greater_than": "expected more than {gt}",
    "greater_than_equal": "expected at least {ge}",
    "less_than": "expected less than {lt}",
    "less_than_equal": "expected at most {le}",
    "tuple_type": "expected a list",
    "list_type": "expected a list",
    "dict_type": "expected an object",
    "model_type": "expected an object",
    "model_attributes_type": "expected an object",
    "too_short": "expected at least {min_length} of them, got {actual_length}",
    "too_long": "expected at most {max_length} of them, got {actual_length}",
}
"""Maps the types of pydantic's errors to messages with the names of an error's context."""
_MAX_NAME_CHARACTERS: Final = 100


def plain_message(details: Mapping[str, Any]) -> str:
    """Returns the message of an error, given as `ValidationError.errors` lists it."""
    context = details.get("ctx", {})
    if details["type"] in _TEMPLATES and "message" not in context:
        return _TEMPLATES[details["type"]].format_map(context)
    return details["msg"].removeprefix("Value error, ")


def as_line_error(details: Mapping[str, Any]) -> InitErrorDetails:
    """Returns an error, given as `ValidationError.errors` lists it, for another `ValidationError` to hold."""
    # A validator's exception is left out: its traceback leads back to the value, in a circle.
    context: Any = {name: part for name, part in details.get("ctx", {}).items() if name != "error"}
    return InitErrorDetails(
        type=PydanticCustomError(details["type"], "{message}", context | {"message": plain_message(details)}),
        loc=details["loc"],
        input=details["input"],
    )


def name_known_fields(error: ValidationError, known: Mapping[str, Any]) -> ValidationError:
    """Returns an error whose messages about unknown fields of an object name the field that was probably meant.

    Args:
        error: What is wrong with the object.
        known: The fields that the object may have.
    """
    errors = error.errors(include_url=False)
    if not any(map(_is_unknown_field, errors)):
        return error
    line_errors = []
    for details in errors:
        if _is_unknown_field(details):
            message = _describe_unknown_field(str(details["loc"][0]), known)
            details = {**details, "ctx": {"message": message}, "msg": message}
        line_errors.append(as_line_error(details))
    return ValidationError.from_exception_data(error.title, line_errors)


def _is_unknown_field(details: Mapping[str, Any]) -> bool:
    is_named = "message" in details.get("ctx", {})
    return details["type"] == "extra_forbidden" and len(details["loc"]) == 1 and not is_named


def _describe_unknown_field(name: str, known: Mapping[str, Any]) -> str:
    if match := get_close_matches(name[:_MAX_NAME_CHARACTERS], known, n=1):
        return f"no such field; did you mean {match[0]}?"
    return f"no such field; expected {', '.join(known)}"
