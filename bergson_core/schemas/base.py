"""Base models: `Spec` for what a user asks for, `ResultModel` for what comes back.

Both are immutable, refuse unknown fields, and take each field's description from the docstring below it, so that
`help()`, the command line and the OpenAPI document say the same.
"""

import inspect
import re
from collections.abc import Iterable, Mapping
from functools import reduce
from operator import or_
from textwrap import indent
from types import NoneType, UnionType
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Final, Literal, Self, Union, get_args, get_origin

from pydantic import (
    BaseModel,
    ConfigDict,
    GetCoreSchemaHandler,
    GetJsonSchemaHandler,
    ModelWrapValidatorHandler,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)
from pydantic.fields import FieldInfo
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import InitErrorDetails, PydanticCustomError

from bergson_core.errors import InvalidInput
from bergson_core.schemas.validation.bounded_errors import (
    bound_errors_of_lists,
    require_few_unknown_fields,
    require_max_length,
    short_repr,
)
from bergson_core.schemas.validation.plain_messages import name_known_fields, plain_message

_MAX_SHOWN_ERRORS: Final = 20
_MAX_SHOWN_CHARS: Final = 200
UNION_TAGS: Final = frozenset({"<value>", "<values>", "<comparisons>"})
"""Tags of the members of a union, which pydantic puts between the names of fields where it says what is wrong."""


class _DocumentedModel(BaseModel):
    """Base that lists the fields with their descriptions in the docstring, where `help()` shows them."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", use_attribute_docstrings=True, protected_namespaces=()
    )
    _written_doc: ClassVar[str | None] = None

    @classmethod
    def __pydantic_init_subclass__(cls, **options: Any) -> None:
        super().__pydantic_init_subclass__(**options)
        cls._written_doc = inspect.cleandoc(cls.__doc__) if cls.__doc__ else None
        fields = "\n".join(_describe_field(name, field) for name, field in cls.model_fields.items())
        cls.__doc__ = f"{cls._written_doc or cls.__name__}\n\nAttributes:\n{fields}"
        # The docstring has the types; pydantic's signature repeats them with their limits in a line without end.
        parameters = inspect.signature(cls).parameters.values()
        cls.__signature__ = inspect.Signature([p.replace(annotation=p.empty) for p in parameters])

    @classmethod
    def __get_pydantic_json_schema__(cls, core_schema: Any, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        """Describes the class by the docstring as it was written: a JSON schema lists the fields anyway.

        `CoreSchema` is not named here, because it would fill a page of `help()`.
        """
        json_schema = handler(core_schema)
        class_schema = handler.resolve_ref_schema(json_schema)
        if cls._written_doc is None:
            class_schema.pop("description", None)
        else:
            class_schema["description"] = cls._written_doc
        return json_schema


def _describe_field(name: str, field: FieldInfo) -> str:
    """Returns the entry of a docstring for a field: its name, type and default, and its description."""
    kind = re.sub(r"\b(\w+\.)+(?=\w)", "", inspect.formatannotation(_without_metadata(field.annotation)))
    default = "" if field.is_required() else f", default {field.get_default(call_default_factory=True)!r}"
    # A nested model describes itself.
    description = field.description or getattr(field.annotation, "_written_doc", None)
    text = f"\n{indent(description, ' ' * 8)}" if description else ""
    return f"    {name} ({kind}{default}):{text}"


def _without_metadata(annotation: Any) -> Any:
    """Returns an annotation without what `Annotated` adds to its parts."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _without_metadata(arguments[0])
    if origin is None or origin is Literal:
        return annotation
    parts = tuple(map(_without_metadata, arguments))
    return reduce(or_, parts) if origin in (Union, UnionType) else origin[parts]


def field_error(*location: str | int, message: str) -> ValidationError:
    """Returns an error for a validator of a whole model to raise about one of the model's fields.

    Args:
        location: Name of the field, and the positions and names that lead to the part that is wrong.
        message: What was expected.
    """
    details = InitErrorDetails(
        # An input that is an object is not shown: the message says what came.
        type=PydanticCustomError("value_error", "{message}", {"message": message}),
        loc=location,
        input={},
    )
    return ValidationError.from_exception_data("", [details])


def plain_errors(errors: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Returns errors of pydantic as a user of JSON understands them.

    Their locations name fields only, their messages speak of lists and objects, and a list is not called too short
    because all its items are wrong, which pydantic reports as well.
    """
    errors = list(errors)
    with_parents = {details["loc"][:end] for details in errors for end in range(len(details["loc"]))}
    return [
        {
            **details,
            "loc": tuple(part for part in details["loc"] if part not in UNION_TAGS),
            "msg": plain_message(details),
        }
        for details in errors
        if details["type"] != "too_short" or details["loc"] not in with_parents
    ]


def describe_validation_error(error: ValidationError, root: str) -> str:
    """Returns a line for each wrong field: `field.path: what was expected; got …`.

    At most 20 fields are listed, and at most 200 characters of a value are shown. A field that several items of a list
    have, but may not have, is listed once, for the first item.

    Args:
        error: What pydantic raised.
        root: Stands in place of the path where the fault is not that of a single field.
    """
    errors, are_repeated = _fold_unknown_fields(plain_errors(error.errors(include_url=False)))
    lines = []
    for details, repeated in list(zip(errors, are_repeated, strict=True))[:_MAX_SHOWN_ERRORS]:
        path = ".".join(map(str, details["loc"])) or root
        message, value = details["msg"], details["input"]
        # The value is left out where there is none, where the message has it, and where several fields are at fault.
        of_several_fields = details["type"] == "value_error" and isinstance(value, Mapping)
        if (
            details["type"] not in ("missing", "extra_forbidden")
            and "got " not in message
            and not of_several_fields
        ):
            message += f"; got {short_repr(value, _MAX_SHOWN_CHARS)}"
        if repeated:
            message += " (also in later items)"
        lines.append(f"{path}: {message}")
    if len(errors) > _MAX_SHOWN_ERRORS:
        lines.append(f"and {len(errors) - _MAX_SHOWN_ERRORS} more")
    return "\n".join(lines)


def _fold_unknown_fields(errors: list[Any]) -> tuple[list[Any], list[bool]]:
    """Returns errors without those about unknown fields that an earlier item has too, and which of them are repeated.

    A file of queries with columns of its own would otherwise give a line for each of its cells. How often an error is
    repeated is not told, because only the first errors of a long list are known.
    """
    kept: list[Any] = []
    are_repeated: list[bool] = []
    places: dict[tuple[Any, ...], int] = {}
    for details in errors:
        if details["type"] == "extra_forbidden":
            field = tuple(None if isinstance(part, int) else part for part in details["loc"])
            if field in places:
                are_repeated[places[field]] = True
                continue
            places[field] = len(kept)
        kept.append(details)
        are_repeated.append(False)
    return kept, are_repeated


class _SpecType(type(BaseModel)):
    """Metaclass that turns pydantic's error into `InvalidInput` where the class of a spec is called.

    Only a direct call comes through here. Where a spec is a field of another model, the body of an HTTP request, or
    read by a `TypeAdapter`, pydantic makes the instance without calling the class, and its own error has to come
    through, because it says where in the whole the wrong field is. An overridden `__init__` would be called in both
    cases.
    """

    def __call__(cls, *args: Any, **fields: Any) -> Any:
        try:
            return super().__call__(*args, **fields)
        except ValidationError as error:
            raise InvalidInput(describe_validation_error(error, cls.__name__)) from error


# Type checkers know the fields of a model from pydantic's own metaclass, so they do not get to see ours.
if TYPE_CHECKING:
    _SpecBase = _DocumentedModel
else:

    class _SpecBase(_DocumentedModel, metaclass=_SpecType):
        pass


class Spec(_SpecBase):
    """Base of everything that a user asks for: immutable, and unknown fields are refused.

    Calling the class, `model_validate` and `model_validate_json` raise `InvalidInput` where a field is wrong. Its text
    has a line for each wrong field; the cause is pydantic's `ValidationError`.

    A large value that is wrong has few errors, and is refused at once (`bounded_errors`).
    """

    model_config = ConfigDict(allow_inf_nan=False)

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: GetCoreSchemaHandler) -> Any:
        """Bounds the errors of every list in the model."""
        schema = handler(source)
        bound_errors_of_lists(handler.resolve_ref_schema(schema))
        return schema

    @model_validator(mode="wrap")
    @classmethod
    def _name_known_fields(cls, fields: Any, validate: ModelWrapValidatorHandler[Self]) -> Self:
        try:
            require_few_unknown_fields(fields, cls.model_fields, cls.__name__)
            return validate(fields)
        except ValidationError as error:
            raise name_known_fields(error, cls.model_fields) from None

    @classmethod
    def model_validate(cls, obj: Any, **options: Any) -> Self:
        """Returns the spec that a mapping describes. Raises `InvalidInput` where a field is wrong."""
        try:
            return super().model_validate(obj, **options)
        except ValidationError as error:
            raise InvalidInput(describe_validation_error(error, cls.__name__)) from error

    @classmethod
    def model_validate_json(cls, json_data: str | bytes | bytearray, **options: Any) -> Self:
        """Returns the spec that JSON text describes. Raises `InvalidInput` where a field is wrong."""
        try:
            return super().model_validate_json(json_data, **options)
        except ValidationError as error:
            raise InvalidInput(describe_validation_error(error, cls.__name__)) from error

    def __repr__(self) -> str:
        """Names only the fields that differ from their defaults, which keeps signatures and messages short."""
        fields = type(self).model_fields
        changed = [
            f"{name}={value!r}"
            for name, value in self
            if fields[name].is_required() or value != fields[name].get_default(call_default_factory=True)
        ]
        return f"{type(self).__name__}({', '.join(changed)})"

    @field_validator("*", mode="before")
    @classmethod
    def _refuse_lookalikes(cls, value: Any, info: ValidationInfo) -> Any:
        """Refuses what pydantic would convert to a number or a truth value, such as "10", true or 1.

        Lengths are checked here as well, before the items.
        """
        field = cls.model_fields[info.field_name or ""]
        require_max_length(value, field)
        annotation = field.annotation
        allowed = set(get_args(annotation) or (annotation,))
        kinds = allowed - {NoneType}
        if value is None and NoneType in allowed:
            return value
        if kinds and kinds <= {int, float} and isinstance(value, bool | str):
            raise ValueError(f"expected a number, got {short_repr(value)}")
        if kinds == {bool} and not isinstance(value, bool):
            raise ValueError(f"expected true or false, got {short_repr(value)}")
        return value


class ResultModel(_DocumentedModel):
    """Base of everything that comes back: immutable, and unknown fields are refused."""
