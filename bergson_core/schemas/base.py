"""What all specs share: frozen, strict, and described by their own docstrings. No torch here."""

from types import NoneType
from typing import Any, get_args

from pydantic import BaseModel, ConfigDict, ValidationInfo, field_validator


class Spec(BaseModel):
    """Base: immutable, unknown fields refused, and a field's docstring is its description."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        use_attribute_docstrings=True,
        protected_namespaces=(),
        allow_inf_nan=False,
    )

    @field_validator("*", mode="before")
    @classmethod
    def _is_what_it_seems(cls, value: Any, info: ValidationInfo) -> Any:
        """Refuses what pydantic would take for a number or a truth value: "10", true, 1."""
        annotation = cls.model_fields[info.field_name or ""].annotation
        kinds = set(get_args(annotation) or (annotation,)) - {NoneType}
        if kinds and kinds <= {int, float} and isinstance(value, bool | str):
            raise ValueError(f"expected a number, got {str(value)[:100]!r}")
        if kinds == {bool} and not isinstance(value, bool):
            raise ValueError(f"expected true or false, got {str(value)[:100]!r}")
        return value


class ResultModel(BaseModel):
    """Base: immutable, unknown fields refused, and a field's docstring is its description."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", use_attribute_docstrings=True, protected_namespaces=()
    )
