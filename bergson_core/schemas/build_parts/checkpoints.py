"""Checks the checkpoints that a build names in `models`, and says which model is the last of them."""

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

from bergson_core.errors import InvalidInput
from bergson_core.schemas.base import field_error
from bergson_core.schemas.source import require_short_path

if TYPE_CHECKING:
    from bergson_core.schemas.build import BuildSpec

MAX_CHECKPOINTS: Final = 32
"""Largest number of checkpoints of an index."""
_MAX_NAME_CHARACTERS: Final = 4096
_HUB_REVISION: Final = re.compile(
    r"([A-Za-z0-9][\w.-]*(?:/[A-Za-z0-9][\w.-]*)?)@(?!.*\.\.)(\w[\w./-]{0,255})"
)


def split_revision(name: str) -> tuple[str, str | None]:
    """Returns (hub id, revision) of a checkpoint such as `EleutherAI/pythia-160m@step1000`.

    Any other name, such as a path, is returned as it is, with None. A relative path that has the form of a hub id with
    a revision has to begin with `./`.
    """
    match = _HUB_REVISION.fullmatch(name)
    return (match[1], match[2]) if match else (name, None)


def with_last_model(fields: Any) -> Any:
    """Returns the fields of a build with the last of `models` as `model` and `revision`, if they state no model."""
    models = fields.get("models") if isinstance(fields, Mapping) else None
    if not isinstance(models, list | tuple) or not models or not isinstance(models[-1], str):
        return fields
    if fields.get("model") is not None or fields.get("revision") is not None:
        return fields
    model, revision = split_revision(models[-1])
    return {**fields, "model": model, "revision": revision}


def require_checkpoints(models: tuple[str, ...]) -> tuple[str, ...]:
    """Raises `ValueError` for a single checkpoint, one that is named twice, or one whose name is no path or hub id."""
    if len(models) == 1:
        raise ValueError("expected at least 2 checkpoints, or one as `model`; got 1")
    for number, name in enumerate(models):
        if not 1 <= len(name) <= _MAX_NAME_CHARACTERS:
            raise ValueError(
                f"checkpoint {number}: expected 1 to {_MAX_NAME_CHARACTERS:,} characters, got {len(name):,}"
            )
        require_short_path(name)
        if name in models[:number]:
            raise ValueError(f"checkpoint {number}: expected each checkpoint once, got {name[:200]!r} again")
    return models


def require_settings_of_checkpoints(spec: "BuildSpec") -> None:
    """Raises a `ValidationError` where a build of several checkpoints states what only one model can have."""
    if (spec.model, spec.revision) != split_revision(spec.models[-1]):
        raise field_error(
            "model",
            message="expected either `model` or `models`, or the last of `models` as `model`; got "
            f"{spec.model[:200]!r}"
            + (f" at {spec.revision!r}" if spec.revision else "")
            + ". A revision of the "
            "hub is written behind the checkpoint's id, as in id@revision",
        )
    if spec.columns.chosen is not None:
        raise field_error(
            *("columns", "chosen"),
            message="preference pairs are weighed by one model: expected `model` in place of `models` with them",
        )
    if spec.device_map is not None:
        raise field_error(
            "device_map",
            message="the checkpoints of `models` take turns on one device: expected no device_map with them",
        )
    if spec.gradients.optimizer_state is not None:
        raise field_error(
            *("gradients", "optimizer_state"),
            message="an optimizer's checkpoint belongs to one of `models` alone: expected none, so that the moments of "
            "each are fitted to a sample",
        )


def require_between(between: tuple[int, int], checkpoints: int) -> range:
    """Returns the checkpoints of an index that the steps between two of them began from.

    Args:
        between: The earlier and the later checkpoint, counted from 0 or, where negative, from the end.
        checkpoints: The number of checkpoints of the index.

    Raises:
        InvalidInput: The index has one checkpoint, or not these, or the earlier one is not before the later one.
    """
    if checkpoints == 1:
        raise InvalidInput(
            "between: expected an index of several checkpoints, which is built with `models`; this one has one model"
        )
    for number in between:
        if not -checkpoints <= number < checkpoints:
            raise InvalidInput(
                f"between: the index has the checkpoints 0 to {checkpoints - 1}; there is no {number}"
            )
    earlier, later = (number % checkpoints for number in between)
    if earlier >= later:
        raise InvalidInput(
            f"between: expected an earlier and a later checkpoint, got {earlier} and {later} of 0 to {checkpoints - 1}"
        )
    return range(earlier, later)


def describe_model_or_models(json_schema: dict[str, Any]) -> None:
    """Says in the JSON schema of a build that `models` may stand for `model`."""
    required = [name for name in json_schema.get("required", ()) if name != "model"]
    json_schema.pop("required", None)
    if required:
        json_schema["required"] = required
    json_schema["anyOf"] = [{"required": ["model"]}, {"required": ["models"]}]
