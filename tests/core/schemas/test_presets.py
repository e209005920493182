"""A preset fills in what a build does not say, and nothing else."""

import json
from typing import Any

import pytest

from bergson_core.errors import InvalidInput
from bergson_core.schemas.build import BuildSpec, GradientSpec, ScoringSpec
from bergson_core.schemas.presets import PRESETS, PresetName

SOURCE: dict[str, Any] = {"model": "m", "dataset": {"path": "rows.jsonl"}}
VALUES = [
    pytest.param(name, part, field, value, id=f"{name}-{field}")
    for name, preset in PRESETS.items()
    for part, fields in preset.values.items()
    for field, value in fields.items()
    if (name, field) != ("best", "preconditioner")  # C is not for projections as large as those of `best`
]


@pytest.mark.parametrize("name", PRESETS)
def test_a_build_with_a_preset_is_the_build_with_its_values(name: str) -> None:
    with_preset = BuildSpec(**SOURCE, preset=name)
    with_values = BuildSpec.model_validate(SOURCE | PRESETS[name].values)
    assert with_preset == with_values
    assert with_preset.fingerprint() == with_values.fingerprint()
    assert with_preset.model_dump_json() == with_values.model_dump_json()
    assert BuildSpec.model_validate_json(json.dumps(SOURCE | {"preset": name})) == with_values
    for part, fields in PRESETS[name].values.items():
        assert {field: getattr(getattr(with_preset, part), field) for field in fields} == fields


@pytest.mark.parametrize("name", ["default", None])
def test_the_preset_default_changes_nothing(name: str | None) -> None:
    assert BuildSpec(**SOURCE, preset=name) == BuildSpec(**SOURCE)


@pytest.mark.parametrize(
    "given", [{"projection_dim": 32}, GradientSpec(projection_dim=32)], ids=["object", "spec"]
)
def test_a_part_that_is_given_in_part_is_filled_in(given: Any) -> None:
    spec = BuildSpec(**SOURCE, preset="best", gradients=given)
    expected = {**PRESETS["best"].values["gradients"], "projection_dim": 32}
    assert spec.gradients == GradientSpec(**expected)
    assert spec.scoring == ScoringSpec(**PRESETS["best"].values["scoring"])


@pytest.mark.parametrize(("name", "part", "field", "value"), VALUES)
@pytest.mark.parametrize("form", ["object", "spec", "json"])
def test_a_value_that_is_given_counts_even_if_it_is_the_default(
    name: str, part: str, field: str, value: Any, form: str
) -> None:
    part_class = {"gradients": GradientSpec, "scoring": ScoringSpec}[part]
    default = part_class.model_fields[field].default
    given: Any = {field: default}
    if form == "json":
        spec = BuildSpec.model_validate_json(json.dumps(SOURCE | {"preset": name, part: given}))
    else:
        spec = BuildSpec(**SOURCE, preset=name, **{part: given if form == "object" else part_class(**given)})
    expected = {**PRESETS[name].values, part: {**PRESETS[name].values[part], field: default}}
    assert spec == BuildSpec.model_validate(SOURCE | expected)


@pytest.mark.parametrize(
    "part", [GradientSpec(), GradientSpec.model_validate({}), {}], ids=["spec", "validated", "object"]
)
def test_a_part_of_which_nothing_is_given_is_the_preset_s(part: Any) -> None:
    assert BuildSpec(**SOURCE, preset="best", gradients=part) == BuildSpec(**SOURCE, preset="best")


def test_a_stored_spec_is_whole_so_that_a_preset_changes_nothing_in_it() -> None:
    stored = json.loads(BuildSpec(**SOURCE).model_dump_json())
    assert "preset" not in stored
    assert BuildSpec.model_validate(stored | {"preset": "best"}) == BuildSpec(**SOURCE)


def test_what_comes_back_has_no_preset() -> None:
    spec = BuildSpec(**SOURCE, preset="best")
    assert spec.preset is None
    assert "preset" not in spec.model_dump()
    assert "preset" not in BuildSpec.model_json_schema(mode="serialization")["properties"]


@pytest.mark.parametrize("name", ["Best", "", "bst", ["best"], {"best": 1}, 1, True])
def test_an_unknown_preset_is_refused_with_the_names(name: Any) -> None:
    with pytest.raises(InvalidInput, match=r"^preset: expected 'default', 'trackstar' or 'best'; got"):
        BuildSpec(**SOURCE, preset=name)


@pytest.mark.parametrize("part", [None, "kfac", 3, ["kfac"], True])
def test_a_part_that_is_no_object_is_refused_and_not_replaced(part: Any) -> None:
    with pytest.raises(InvalidInput, match=r"^gradients: expected an object"):
        BuildSpec(**SOURCE, preset="best", gradients=part)


def test_an_unknown_field_beside_a_preset_is_refused() -> None:
    with pytest.raises(
        InvalidInput, match=r"^gradients\.projektion_dim: no such field; did you mean projection_dim"
    ):
        BuildSpec(**SOURCE, preset="best", gradients={"projektion_dim": 4})


def test_a_value_of_a_preset_that_does_not_go_with_what_is_given_is_said_to_be_the_preset_s() -> None:
    with pytest.raises(
        InvalidInput, match=r"^gradients\.normalizer: .* got 'kfac'; this value is of the preset 'best'"
    ):
        BuildSpec(**SOURCE, preset="best", gradients={"optimizer_state": "optimizer.pt"})


def test_a_preconditioner_is_given_with_a_projection_that_is_small_enough_for_it() -> None:
    scoring = {"preconditioner": True}
    with pytest.raises(InvalidInput, match=r"at most 64, got 96.*; this value is of the preset 'best'"):
        BuildSpec(**SOURCE, preset="best", scoring=scoring)
    spec = BuildSpec(**SOURCE, preset="best", gradients={"projection_dim": 64}, scoring=scoring)
    assert (spec.scoring.preconditioner, spec.gradients.projection_dim) == (True, 64)


def test_a_given_value_that_does_not_go_with_a_preset_is_refused_by_its_own_field() -> None:
    with pytest.raises(
        InvalidInput, match=r"^gradients\.projection_dim: .*got 128; .* or scoring\.preconditioner false$"
    ):
        BuildSpec(**SOURCE, preset="trackstar", gradients={"projection_dim": 128})


@pytest.mark.parametrize("rows", ["float16", "int8"])
def test_other_rows_go_with_the_scoring_of_a_preset(rows: str) -> None:
    spec = BuildSpec(**SOURCE, preset="best", gradients={"rows": rows})
    assert spec.gradients == GradientSpec(**{**PRESETS["best"].values["gradients"], "rows": rows})


@pytest.mark.parametrize("name", PRESETS)
def test_the_parts_of_a_preset_can_be_had_without_a_build(name: PresetName) -> None:
    spec = BuildSpec(**SOURCE, preset=name)
    assert (GradientSpec.from_preset(name), ScoringSpec.from_preset(name)) == (spec.gradients, spec.scoring)
    changed = GradientSpec.from_preset(name, projection_dim=3)
    assert changed == spec.gradients.model_copy(update={"projection_dim": 3})
    assert ScoringSpec.from_preset(name, normalize="none") == spec.scoring.model_copy(
        update={"normalize": "none"}
    )


@pytest.mark.parametrize("name", ["bst", None, ()])
def test_the_parts_of_an_unknown_preset_are_refused(name: Any) -> None:
    for part in (GradientSpec, ScoringSpec):
        with pytest.raises(InvalidInput, match="expected default, trackstar, best, got"):
            part.from_preset(name)


def test_the_description_lists_every_preset_with_its_values() -> None:
    description = BuildSpec.model_fields["preset"].description or ""
    for name, preset in PRESETS.items():
        assert f"`{name}` is {preset.purpose}" in description
        for fields in preset.values.values():
            assert all(field in description for field in fields)
