"""Presets of a build: values by name for how rows are made and compared, which fill in what the build does not say.

A preset is gone once it has filled in its values: jobs and manifests hold the values themselves, so that a build means
the same after a preset has changed, and has the same fingerprint as one that states the values.
"""

from collections.abc import Mapping, Set
from dataclasses import dataclass
from typing import Any, Final, Literal, TypeVar, cast

from pydantic import BaseModel, ModelWrapValidatorHandler, ValidationError

from bergson_core.errors import InvalidInput
from bergson_core.schemas.validation.bounded_errors import short_repr
from bergson_core.schemas.validation.plain_messages import as_line_error, plain_message

PresetName = Literal["default", "trackstar", "best"]
SpecType = TypeVar("SpecType")


@dataclass(frozen=True)
class Preset:
    """Values of fields of a build, and what they are for.

    Attributes:
        purpose: What the preset is for, as part of a sentence.
        values: Name of a part of `BuildSpec` → the values of the part's fields.
    """

    purpose: str
    values: Mapping[str, Mapping[str, Any]]


PRESETS: Final[Mapping[PresetName, Preset]] = {
    "default": Preset("the defaults of all fields", {}),
    "trackstar": Preset(
        "TrackStar as in arXiv 2410.17413",
        {
            "gradients": {"normalizer": "adafactor", "rows": "float16", "projection_dim": 32},
            "scoring": {"normalize": "row", "preconditioner": True},
        },
    ),
    "best": Preset(
        "the settings with the best measured quality on real text, see docs/quality.md",
        {
            "gradients": {"normalizer": "kfac", "rows": "sign", "projection_dim": 96, "modules": "mlp"},
            "scoring": {"normalize": "block", "preconditioner": False},
        },
    ),
}
"""The presets. `trackstar` has Adafactor's second moments, the preconditioner C and rows of unit length, and a larger
projection than the default, as the paper's rows have 2¹⁶ numbers. `best` has whitened gradients, which need no C, of
MLPs alone, with one bit for each of many numbers."""


def preset_values(name: PresetName, part: str) -> Mapping[str, Any]:
    """Returns the values of a preset for a part of `BuildSpec`. Raises `InvalidInput` for another name."""
    if name not in list(PRESETS):
        raise InvalidInput(f"preset: expected {', '.join(PRESETS)}, got {short_repr(name)}")
    return PRESETS[name].values.get(part, {})


def fill_in_preset(fields: Any, validate: ModelWrapValidatorHandler[SpecType]) -> SpecType:
    """Returns the spec of `fields`, in which the values of the preset that `fields` names stand in for what is missing.

    Args:
        fields: What is validated: the fields of a build by name, in which a part may be an object or a spec. Only those
            fields of a spec count as given that it was made with.
        validate: Makes the spec of the fields.
    """
    name = fields.get("preset") if isinstance(fields, Mapping) else None
    preset = PRESETS.get(cast(PresetName, name)) if isinstance(name, str) else None
    if preset is None:
        return validate(fields)
    whole, filled = {**fields, "preset": None}, set[tuple[str, str]]()
    for part, values in preset.values.items():
        given = fields.get(part, {})
        if isinstance(given, BaseModel):
            given = {field: getattr(given, field) for field in given.model_fields_set}
        if isinstance(given, Mapping):  # anything else is refused below
            whole[part] = {**values, **given}
            filled |= {(part, field) for field in values.keys() - given.keys()}
    try:
        return validate(whole)
    except ValidationError as error:
        raise _name_preset(error, f"the preset {name!r}", filled) from None


def _name_preset(error: ValidationError, preset: str, filled: Set[tuple[str, ...]]) -> ValidationError:
    """Returns an error that says of each wrong value that the preset has filled in where the value is from."""
    line_errors = []
    for details in error.errors(include_url=False):
        if details["loc"] in filled:
            message = f"{plain_message(details)}; this value is of {preset}: state another"
            details = {**details, "ctx": {"message": message}, "msg": message}
        line_errors.append(as_line_error(details))
    return ValidationError.from_exception_data(error.title, line_errors)


def describe_presets() -> str:
    """Returns the description of the field `preset`."""
    lines = [
        f"`{name}` is {preset.purpose}" + (f" ({_list_values(preset)})" if preset.values else "")
        for name, preset in PRESETS.items()
    ]
    return f"Values for the fields that are not given: {'; '.join(lines)}. A field that is given overrides the preset."


def _list_values(preset: Preset) -> str:
    return ", ".join(
        f"{name} {_as_json(value)}" for part in preset.values.values() for name, value in part.items()
    )


def _as_json(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
