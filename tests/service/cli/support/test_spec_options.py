"""The options that commands derive from specs cover every field, mean that field, and have stable names."""

import json
import re
from collections.abc import Iterator
from inspect import signature
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin

import pytest
import typer
from pydantic import BaseModel
from typer.main import get_command
from typer.testing import CliRunner

from bergson_core.errors import InvalidInput
from bergson_core.schemas.base import Spec
from bergson_core.schemas.build import BuildSpec
from bergson_core.schemas.evaluation import EvaluationSpec
from bergson_core.schemas.query import AttributionQuery
from bergson_core.schemas.source import ColumnsSpec, DatasetSpec
from service.cli import app
from service.cli.build import BUILD_OPTIONS
from service.cli.evaluate import EVALUATION_OPTIONS
from service.cli.maintain import NEW_DOCUMENTS_OPTIONS
from service.cli.query import QUERY_OPTIONS
from service.cli.support.spec_options import (
    DerivedOption,
    SpecOptions,
    derive_options,
    iter_fields,
    make_spec,
    options_from_specs,
)

COMMITTED = Path(__file__).with_name("options.txt")
TABLES: dict[type[BaseModel], SpecOptions] = {
    BuildSpec: BUILD_OPTIONS,
    DatasetSpec: NEW_DOCUMENTS_OPTIONS,
    AttributionQuery: QUERY_OPTIONS,
    EvaluationSpec: EVALUATION_OPTIONS,
}
REQUIRED = {"model": "M", "dataset": "D", "prompt": "P"}
PAIR: dict[str, str | None] = {"chosen_column": "good", "rejected_column": "bad"}
NEEDED_BESIDE: dict[str, dict[str, str | None]] = {
    "span": {"completion": "C C C"},
    "chunk_overlap": {"long_documents": "chunk"},
    "preference_beta": PAIR,
    "reference_model": PAIR,
    "reference_revision": PAIR | {"reference_model": "R"},
    "instead_of_behaviour": {"prompt": None, "completion": None, "behaviour": "refusals"},
}
"""Options that another option cannot be given without."""
BEHAVIOUR_OPTION = "AttributionQuery-behaviour"
MESSAGES_OPTION = "AttributionQuery-messages"
"""These exclude the prompt, which the other options need."""
PAIR_OPTIONS = [
    f"BuildSpec-{name}_column" for name in ("chosen", "rejected", "ref_chosen_logps", "ref_rejected_logps")
]
"""They go in twos."""
PRESET_OPTION = "BuildSpec-preset"
"""It sets what other options leave out."""
CHECKPOINTS_OPTION = "BuildSpec-models"
"""It is given twice at least, and sets the model."""
CHAT = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hö."}]
EXPECTED: dict[type[BaseModel], BaseModel] = {
    BuildSpec: BuildSpec(model="M", dataset=DatasetSpec(path="D")),
    DatasetSpec: DatasetSpec(path="D"),
    AttributionQuery: AttributionQuery(index="index", prompt="P"),
    EvaluationSpec: EvaluationSpec(),
}


def values_without_options(spec: type[BaseModel]) -> dict[str, Any]:
    """The values that typer passes where only the required options are given."""
    parameters = [option.make_parameter() for option in derive_options(spec, TABLES[spec])]
    return {parameter.name: REQUIRED.get(parameter.name, parameter.default) for parameter in parameters}


def another_value(option: DerivedOption) -> Any:
    """A valid value on the command line that is not the default."""
    default, annotation = option.field.default, option.field.annotation
    if option.name in ("span", "between"):
        return "1:3"
    if option.name == "device_map":
        return '{"model.layers": 0}'
    if option.name == "filter":
        return '{"source": ["wiki"]}'
    if option.repeatable:
        item = get_args(annotation)[0]
        return [get_args(item)[-1] if get_origin(item) is Literal else "other"]
    choices = [part for part in get_args(annotation) if get_origin(part) is Literal]
    if choices:  # or None
        return get_args(choices[0])[0]
    if get_origin(annotation) is Literal:
        return next(value for value in get_args(annotation) if value != default)
    if annotation is bool:
        return not default
    if option.override.type == int | None or annotation in (int, int | None):
        return 7
    return 0.25 if annotation in (float, float | None) else "other"


def options() -> list[Any]:
    return [
        pytest.param(spec, option, id=f"{spec.__name__}-{option.name}")
        for spec, table in TABLES.items()
        for option in derive_options(spec, table)
    ]


@pytest.mark.parametrize("spec", TABLES)
def test_without_options_a_spec_has_the_defaults_of_its_fields(spec: type[BaseModel]) -> None:
    assert make_spec(spec, TABLES[spec], values_without_options(spec)) == EXPECTED[spec]


@pytest.mark.parametrize("form", ["text", "file"])
def test_the_messages_of_a_query_are_json_or_a_file_with_it(tmp_path: Path, form: str) -> None:
    value = json.dumps(CHAT, ensure_ascii=False)
    if form == "file":
        (tmp_path / "chat.json").write_text(value, encoding="utf-8")
        value = str(tmp_path / "chat.json")
    values = values_without_options(AttributionQuery) | {"prompt": None, "messages": value}
    assert make_spec(AttributionQuery, QUERY_OPTIONS, values) == AttributionQuery(
        index="index", messages=CHAT
    )


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("missing.json", "missing.json cannot be read"),
        ("[{]", "not JSON"),
        (
            '[{"role": "user", "content": "Hi"}]',
            "expected the last message, which is explained, to have the role assistant",
        ),
        ("[]", "messages"),
    ],
)
def test_messages_that_cannot_be_read_are_refused(value: str, message: str) -> None:
    values = values_without_options(AttributionQuery) | {"prompt": None, "messages": value}
    with pytest.raises(InvalidInput, match=message):
        make_spec(AttributionQuery, QUERY_OPTIONS, values)


@pytest.mark.parametrize(
    ("spec", "option"),
    [
        case
        for case in options()
        if case.id
        not in (MESSAGES_OPTION, BEHAVIOUR_OPTION, PRESET_OPTION, CHECKPOINTS_OPTION, *PAIR_OPTIONS)
    ],
)
def test_an_option_sets_its_field_and_no_other(spec: type[BaseModel], option: DerivedOption) -> None:
    values = values_without_options(spec) | NEEDED_BESIDE.get(option.name, {})
    without, with_option = (
        make_spec(spec, TABLES[spec], given)
        for given in (values, values | {option.name: another_value(option)})
    )
    before, after = (dict(_leaves(model.model_dump())) for model in (without, with_option))
    changed = {path for path in before | after if before.get(path) != after.get(path)}
    assert changed
    assert all(path == option.field.path or path.startswith(f"{option.field.path}.") for path in changed)


def test_checkpoints_stand_for_the_model() -> None:
    without = {name: value for name, value in values_without_options(BuildSpec).items() if name != "model"}
    spec = make_spec(BuildSpec, TABLES[BuildSpec], without | {"models": ["M", "N"]})
    assert (spec.model, spec.models) == ("N", ("M", "N"))
    with pytest.raises(InvalidInput, match="model: required"):
        make_spec(BuildSpec, TABLES[BuildSpec], without)


def test_options_of_preference_pairs_give_their_columns_and_no_prompt() -> None:
    given = {"model": "M", "dataset": "D"} | PAIR
    logps = {"ref_chosen_logps_column": "a", "ref_rejected_logps_column": "b"}
    columns = make_spec(BuildSpec, TABLES[BuildSpec], given | logps).columns
    expected = {"chosen": "good", "rejected": "bad", "ref_chosen_logps": "a", "ref_rejected_logps": "b"}
    assert columns == ColumnsSpec.model_validate(expected)
    assert columns.prompt is None
    assert make_spec(BuildSpec, TABLES[BuildSpec], given | {"prompt_column": "q"}).columns.prompt == "q"


def _leaves(content: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in content.items():
        if isinstance(value, dict):
            yield from _leaves(value, f"{prefix}{name}.")
        elif value is not None:
            yield prefix + name, value


@pytest.mark.parametrize("spec", TABLES)
def test_a_table_names_only_fields_that_exist(spec: type[BaseModel]) -> None:
    table = TABLES[spec]
    stated = table.options.keys() | table.omitted | table.constants.keys()
    paths = {field.path for field in iter_fields(spec, leaves=stated)}
    assert stated <= paths
    assert all(any(path.startswith(f"{section}.") for path in paths) for section in table.sections)


@pytest.mark.parametrize(("spec", "option"), options())
def test_an_option_has_a_help_text(spec: type[BaseModel], option: DerivedOption) -> None:
    assert len(option.help.split()) >= 3


def test_a_field_that_is_added_to_a_spec_is_an_option_at_once() -> None:
    class Nested(Spec):
        depth: int = 3
        """How deep."""

    class Added(Spec):
        nested: Nested = Nested()
        fresh: bool = True

    received: list[Added] = []

    @options_from_specs
    def command(spec: Annotated[Added, SpecOptions()]) -> None:
        received.append(spec)

    _context, depth, fresh = signature(command).parameters.values()
    assert (depth.name, depth.default, get_args(depth.annotation)[0]) == ("depth", 3, int)
    assert get_args(depth.annotation)[1].help == "How deep."
    assert (fresh.name, fresh.default) == ("fresh", True)
    run(command, "--depth", "5", "--no_fresh")
    assert received == [Added(nested=Nested(depth=5), fresh=False)]


@pytest.mark.parametrize(
    ("options", "given"),
    [
        ([], {}),
        (["--preset", "best"], {"preset": "best"}),
        (
            ["--preset", "best", "--projection_dim", "16"],
            {"preset": "best", "gradients": {"projection_dim": 16}},
        ),
        (
            ["--preset", "trackstar", "--no_preconditioner", "--modules", "mlp"],
            {"preset": "trackstar", "scoring": {"preconditioner": False}, "gradients": {"modules": "mlp"}},
        ),
        (["--modules", "all", "--preset", "best"], {"preset": "best", "gradients": {"modules": None}}),
        (["--preset", "default", "--rows", "float16"], {}),
    ],
)
def test_a_preset_fills_in_the_options_that_are_not_given(options: list[str], given: dict[str, Any]) -> None:
    received: list[BuildSpec] = []

    @options_from_specs
    def command(spec: Annotated[BuildSpec, BUILD_OPTIONS]) -> None:
        received.append(spec)

    run(command, "--model", "M", "--dataset", "D", *options)
    assert received == [BuildSpec.model_validate({"model": "M", "dataset": {"path": "D"}} | given)]


@pytest.mark.parametrize("spec", TABLES)
def test_an_option_that_is_not_given_is_no_field_of_the_spec(spec: type[BaseModel]) -> None:
    required = {
        name: REQUIRED[name]
        for name in REQUIRED.keys() & {x.name for x in derive_options(spec, TABLES[spec])}
    }
    made = make_spec(spec, TABLES[spec], required)
    assert made == EXPECTED[spec]
    stated = {path for path, _ in _leaves(made.model_dump(exclude_unset=True))}
    assert len(stated) == len(required) + len(TABLES[spec].constants)


def run(command: Any, *arguments: str) -> None:
    """Runs a command as the command line does."""
    commands = typer.Typer()
    commands.command()(command)
    result = CliRunner().invoke(commands, arguments)
    assert result.exit_code == 0, result.output


def test_the_options_of_every_command_are_those_of_the_committed_list() -> None:
    """Scripts depend on them: a line that changes in options.txt belongs in CHANGELOG.md."""
    assert list(describe_commands(get_command(app))) == COMMITTED.read_text().splitlines()


def describe_commands(command: Any, name: str = "") -> Iterator[str]:
    """Yields a line for each option of each command: its flags, type, default and panel."""
    for word, subcommand in getattr(command, "commands", {}).items():
        yield from describe_commands(subcommand, f"{name} {word}".strip())
    types = signature(command.callback).parameters if command.callback else {}
    for option in sorted(command.params, key=lambda option: option.name):
        if option.param_type_name == "option" and option.name in types:
            default = "required" if option.required else f"= {option.default!r}"
            panel = f" [{option.rich_help_panel}]" if option.rich_help_panel else ""
            kind = type_name(get_args(types[option.name].annotation)[0])
            yield f"{name} {'/'.join([*option.opts, *option.secondary_opts])} {kind} {default}{panel}"


def type_name(kind: Any) -> str:
    name = kind.__name__ if isinstance(kind, type) and not get_args(kind) else str(kind)
    return re.sub(r"typing\.|pathlib\.(_local\.)?", "", name)
