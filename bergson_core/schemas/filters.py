"""Conditions on the metadata of documents, as a query states them.

    "wiki"                          a value: the document has it
    ["wiki", "books", null]         several values: the document has one of them; null stands for no value
    {"gte": 1990, "ne": 1995}       comparisons, all of which hold

Which of these a column can be compared with depends on the type of its values (`search.metadata_filter`).
"""

import math
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Final, Self

from pydantic import (
    Discriminator,
    Tag,
    TypeAdapter,
    ValidationError,
    WithJsonSchema,
    field_validator,
    model_validator,
)

from bergson_core.errors import InvalidInput
from bergson_core.schemas.base import Spec, describe_validation_error, field_error
from bergson_core.schemas.validation.bounded_errors import short_repr

Scalar = bool | int | float | str | None
Scalars = tuple[Annotated[Any, WithJsonSchema(TypeAdapter(Scalar).json_schema())], ...]
"""Several values. Whoever takes them has checked them with `_is_list_of_values`, all at once: pydantic tries the types
one by one for each value."""
_SCALAR_TYPES: Final = {bool, int, float, str, type(None)}


class Range(Spec):
    """Comparisons that the metadata value of a document meets, all of them: bounds, and values that it must not have.

    Null leaves a comparison out.
    """

    gte: int | float | str | None = None
    """Smallest value in the range. Texts are compared by their characters, so dates as text have to be written alike,
    for example `2024-05-01`."""
    gt: int | float | str | None = None
    """Value that all values in the range are greater than."""
    lte: int | float | str | None = None
    """Largest value in the range."""
    lt: int | float | str | None = None
    """Value that all values in the range are less than."""
    ne: Scalar = None
    """Value that the document must not have. A document without a value has no such value, and so meets this."""
    not_in: Scalars | None = None
    """Values of which the document must have none. A document without a value meets this, unless null is among them."""
    exists: bool | None = None
    """Whether the document has a value: `true` or `false`. Null, NaN and lists without values are no value."""

    @model_validator(mode="before")
    @classmethod
    def _require_known_comparisons(cls, fields: Any) -> Any:
        for name in fields if isinstance(fields, Mapping) else ():
            if name not in cls.model_fields:
                raise field_error(
                    str(name),
                    message=f"expected {', '.join(cls.model_fields)}, or a value or a list of values in place of the "
                    f"object; got the comparison {str(name)[:100]!r}",
                )
        return fields

    @field_validator("gte", "gt", "lte", "lt", mode="before")
    @classmethod
    def _require_bound(cls, value: Any) -> Any:
        if value is not None and (type(value) is bool or not _are_values([value])):
            raise ValueError(f"expected a finite number or a text, got {_describe(value)}")
        return value

    @field_validator("ne", mode="before")
    @classmethod
    def _require_value(cls, value: Any) -> Any:
        if not _are_values([value]):
            raise ValueError(f"expected a single value, got {_describe(value)}; `not_in` takes several")
        return value

    @field_validator("not_in", mode="before")
    @classmethod
    def _require_values(cls, value: Any) -> Any:
        if value is not None and not _is_list_of_values(value):
            raise ValueError(f"expected a list of values, got {_describe(value)}; `ne` takes a single one")
        return value

    @model_validator(mode="after")
    def _require_comparisons(self) -> Self:
        if len({isinstance(bound, str) for bound in self.bounds().values()}) > 1:
            raise ValueError("expected bounds that are all numbers, or all texts")
        if all(value is None for _, value in self):
            raise ValueError(
                "expected at least one of gte, gt, lte, lt, ne, not_in, exists, and a value other than null; "
                'for documents with any value, write {"exists": true}'
            )
        return self

    def bounds(self) -> dict[str, int | float | str]:
        """Returns those of gte, gt, lte and lt that are given."""
        bounds = {"gte": self.gte, "gt": self.gt, "lte": self.lte, "lt": self.lt}
        return {name: bound for name, bound in bounds.items() if bound is not None}


def _describe(value: Any) -> str:
    return f"{type(value).__name__} {short_repr(value)}"


def _are_values(items: Sequence[Any]) -> bool:
    types = set(map(type, items))
    if not types <= _SCALAR_TYPES:
        return False
    return float not in types or all(math.isfinite(item) for item in items if type(item) is float)


def _is_list_of_values(value: Any) -> bool:
    return isinstance(value, list | tuple) and _are_values(value)


def _find_shape(condition: Any) -> str | None:
    """Returns which of the three shapes a condition has, so that an error names what is wrong in that shape."""
    if isinstance(condition, Range | Mapping):
        return "<comparisons>"
    if _is_list_of_values(condition):
        return "<values>"
    return "<value>" if _are_values([condition]) else None


Condition = Annotated[
    Annotated[Scalar, Tag("<value>")]
    | Annotated[Scalars, Tag("<values>")]
    | Annotated[Range, Tag("<comparisons>")],
    Discriminator(
        _find_shape,
        custom_error_type="condition",
        custom_error_message="expected a text, a finite number, a truth value or null; a list of these; or an "
        "object with some of gte, gt, lte, lt, ne, not_in, exists",
    ),
]
"""A value, several values of which one has to match, or comparisons, all of which have to hold."""


def validate_filter(filter: Mapping[str, Any] | None) -> dict[str, Condition] | None:
    """Returns the conditions of a filter. Raises `InvalidInput` for one that is not a condition."""
    if not filter:
        return None
    try:
        return TypeAdapter(dict[str, Condition]).validate_python(filter)
    except ValidationError as error:
        raise InvalidInput(describe_validation_error(error, "filter")) from error
