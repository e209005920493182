"""What the spec of a build refuses before anything is read."""

from typing import Any

import pytest

from bergson_core.errors import InvalidInput
from bergson_core.schemas.build import AppendSpec, BuildSpec
from bergson_core.schemas.source import DatasetSpec

LONG_NAMES = [
    "x" * 300,
    "a/" + "x" * 256,
    "/data/" + "ü" * 128 + "/rows.jsonl",
    "./" + "x/" * 2030 + "ü" * 30,
]


@pytest.mark.parametrize("path", LONG_NAMES)
@pytest.mark.parametrize("field", ["model", "dataset.path", "gradients.optimizer_state"])
def test_a_path_that_no_file_system_takes_is_refused_by_its_field(field: str, path: str) -> None:
    fields: dict[str, Any] = {"model": "m", "dataset": {"path": "rows.jsonl"}}
    name, _, part = field.partition(".")
    fields[name] = {**fields.get(name, {}), part: path} if part else path
    with pytest.raises(InvalidInput, match=rf"^{field}: expected a path .* bytes, got"):
        BuildSpec.model_validate(fields)


def test_the_dataset_of_an_append_is_checked_too() -> None:
    with pytest.raises(InvalidInput, match=r"^dataset\.path: expected a path"):
        AppendSpec.model_validate({"dataset": {"path": "x" * 300}})


@pytest.mark.parametrize(
    "path", ["x" * 255, "ü" * 127, "data/" + "[0-9]" * 60 + ".jsonl", "x" * 255 + "/*.jsonl"]
)
def test_a_long_pattern_of_short_names_is_accepted(path: str) -> None:
    assert DatasetSpec(path=path).path == path
