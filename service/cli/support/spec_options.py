"""Command-line options that are derived from the fields of a spec.

A command declares a parameter such as `spec: Annotated[BuildSpec, SpecOptions(...)]`. The decorator
`options_from_specs` replaces that parameter with one option for each field of the spec and of the specs inside it, and
calls the command with the spec that the options describe. The name, type, default and help text of an option are those
of its field, so that they are stated only once; `SpecOptions` has a table of what differs.

A field is named by its path from the spec, such as `gradients.projection_dim`.
"""

import dataclasses
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from functools import wraps
from inspect import Parameter, Signature, signature
from types import NoneType, UnionType
from typing import Annotated, Any, Final, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

import typer
from pydantic import BaseModel

SpecType = TypeVar("SpecType", bound=BaseModel)
_CONTEXT: Final = "context_"


@dataclass(frozen=True)
class OptionOverride:
    """What is different about the option of one field. Whatever is not set here comes from the field."""

    name: str | None = None
    """Name of the option, without the dashes."""
    intro: str = ""
    """Text in front of the field's docstring."""
    help: str = ""
    """Text instead of the field's docstring."""
    type: Any = None
    """Type of the value on the command line, where `parse` makes the field's value from it."""
    optional: bool = False
    """Whether the option of a required field may be left out, since that of another field may stand for it."""
    parse: Callable[[Any], Any] | None = None
    """Converts the value on the command line to the field's value."""
    extra: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    """Further arguments of `typer.Option`, such as `metavar` or `min`."""


@dataclass(frozen=True)
class Section:
    """How the options of a nested spec are shown."""

    panel: str
    """Title of their panel in the help text."""
    suffix: str = ""
    """Appended to the name of each field to make the name of its option."""


@dataclass(frozen=True)
class SpecOptions:
    """How the fields of a spec become options. Every field becomes one unless it is listed here as something else."""

    options: Mapping[str, OptionOverride] = dataclasses.field(default_factory=dict)
    """What differs, by the path of the field."""
    sections: Mapping[str, Section] = dataclasses.field(default_factory=dict)
    """Sections by the path of the nested spec; they include the specs inside that one."""
    omitted: frozenset[str] = frozenset()
    """Paths of the fields that have no option."""
    constants: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    """Values of the fields that a user does not choose, by path."""


@dataclass(frozen=True)
class SpecField:
    """A field that is not itself a spec with fields."""

    path: str
    annotation: Any
    default: Any
    """`Parameter.empty` where the field is required."""
    description: str


@dataclass(frozen=True)
class DerivedOption:
    """An option of the command line and the field whose value it gives."""

    name: str
    field: SpecField
    override: OptionOverride
    section: Section | None

    @property
    def repeatable(self) -> bool:
        """Whether the option may be given several times, each time with one item of the field's tuple."""
        return get_origin(self.field.annotation) is tuple and self.override.type is None

    def make_parameter(self) -> Parameter:
        """Returns the option as a parameter of a function, in the form that typer reads."""
        default = self.field.default
        if self.repeatable:
            annotation, default = list[_item_type(self.field.annotation)] | None, None
        else:
            annotation = self.override.type or self.field.annotation
        if self.override.optional:
            annotation, default = annotation | None, None
        flags = f"--{self.name}/--no_{self.name}" if default is True else f"--{self.name}"
        panel = self.section.panel if self.section else None
        option = typer.Option(flags, help=self.help, rich_help_panel=panel, **self.override.extra)
        return Parameter(
            self.name, Parameter.KEYWORD_ONLY, default=default, annotation=Annotated[annotation, option]
        )

    @property
    def help(self) -> str:
        """The help text: the introduction, the field's docstring, and the default of a repeatable option."""
        parts = [self.override.intro, self.override.help or self.field.description]
        if self.repeatable:
            parts.append("May be repeated.")
            if self.field.default:
                parts.append(f"[default: {', '.join(self.field.default)}]")
        return " ".join(filter(None, parts))


def field_help(spec: type[BaseModel], name: str) -> str:
    """Returns the docstring of a field in one line."""
    return _one_line(spec.model_fields[name].description)


def derive_options(spec: type[BaseModel], table: SpecOptions) -> list[DerivedOption]:
    """Returns the options of a spec, those that are required first, else in the order of the fields."""
    derived = []
    without_option = table.omitted | table.constants.keys()
    for field in iter_fields(spec, leaves=without_option | table.options.keys()):
        if field.path in without_option:
            continue
        override = table.options.get(field.path, OptionOverride())
        section = _find_section(field.path, table.sections)
        name = override.name or field.path.rpartition(".")[2] + (section.suffix if section else "")
        derived.append(DerivedOption(name, field, override, section))
    return sorted(
        derived, key=lambda option: option.override.optional or option.field.default is not Parameter.empty
    )


def iter_fields(spec: type, prefix: str = "", leaves: Collection[str] = ()) -> Iterator[SpecField]:
    """Yields the fields of a spec, with those of a nested spec in its place.

    Args:
        spec: A pydantic model or a dataclass.
        prefix: Path of the spec, with a dot at the end.
        leaves: Paths of nested specs that are yielded as one field.
    """
    for name, annotation, default, description in _iter_own_fields(spec):
        path, nested = prefix + name, _find_nested_spec(annotation)
        if nested is not None and path not in leaves:
            yield from iter_fields(nested, f"{path}.", leaves)
        else:
            yield SpecField(path, annotation, default, _one_line(description))


def make_spec(spec: type[SpecType], table: SpecOptions, values: Mapping[str, Any]) -> SpecType:
    """Returns the spec that the values of its options describe.

    Args:
        spec: Class of the spec.
        table: The table that the options were derived with.
        values: The value of each option that was given, by its name. Those that are required have to be among them.

    Raises:
        InvalidInput: A value is not valid.
    """
    content: dict[str, Any] = {}
    for path, value in table.constants.items():
        _set_path(content, path, value)
    for option in derive_options(spec, table):
        if option.name not in values or (option.repeatable and not values[option.name]):
            continue  # The option was not given.
        value = values[option.name]
        if option.override.parse and value is not None:
            value = option.override.parse(value)
        _set_path(content, option.field.path, value)
    return spec.model_validate(content)


def options_from_specs(command: Callable[..., None]) -> Callable[..., None]:
    """Decorates a command whose parameters annotated with `SpecOptions` are replaced with their options.

    A spec is made of the options that were given, so that it tells them from the defaults of its fields.
    """
    # Typer passes the context to the parameter of this type, whatever its name is.
    parameters = [Parameter(_CONTEXT, Parameter.KEYWORD_ONLY, annotation=typer.Context)]
    specs: dict[str, tuple[type[BaseModel], SpecOptions]] = {}
    for parameter in signature(command).parameters.values():
        metadata = get_args(parameter.annotation)[1:]
        table = next((item for item in metadata if isinstance(item, SpecOptions)), None)
        if table is None:
            parameters.append(parameter.replace(kind=Parameter.KEYWORD_ONLY))
        else:
            spec = get_args(parameter.annotation)[0]
            specs[parameter.name] = (spec, table)
            parameters.extend(option.make_parameter() for option in derive_options(spec, table))

    @wraps(command)
    def run(**values: Any) -> None:
        context = values.pop(_CONTEXT)
        for name, (spec, table) in specs.items():
            options = {option.name: values.pop(option.name) for option in derive_options(spec, table)}
            given = {option: value for option, value in options.items() if _is_given(context, option)}
            values[name] = make_spec(spec, table, given)
        command(**values)

    vars(run)["__signature__"] = Signature(parameters)  # Typer reads the parameters from here.
    return run


def _is_given(context: typer.Context, option: str) -> bool:
    source = context.get_parameter_source(option)
    return source is not None and not source.name.startswith("DEFAULT")


def _iter_own_fields(spec: type) -> Iterator[tuple[str, Any, Any, str | None]]:
    """Yields name, type, default and docstring of each field of a pydantic model or a dataclass."""
    if issubclass(spec, BaseModel):
        for name, info in spec.model_fields.items():
            default = Parameter.empty if info.is_required() else info.get_default(call_default_factory=True)
            yield name, info.annotation, default, info.description
    else:
        types = get_type_hints(spec)
        for field in dataclasses.fields(spec):
            default = Parameter.empty if field.default is dataclasses.MISSING else field.default
            yield field.name, types[field.name], default, None


def _find_nested_spec(annotation: Any) -> type | None:
    """Returns the model or dataclass that the annotation names, also as `Model | None`."""
    members = get_args(annotation) if get_origin(annotation) in (Union, UnionType) else (annotation,)
    (member, *others) = [member for member in members if member is not NoneType]
    is_spec = isinstance(member, type) and (issubclass(member, BaseModel) or dataclasses.is_dataclass(member))
    return member if is_spec and not others else None


def _item_type(annotation: Any) -> type:
    """Returns the type of the items of a tuple, `str` where only some values are allowed: the spec checks those."""
    item = get_args(annotation)[0]
    return str if get_origin(item) is Literal else item


def _find_section(path: str, sections: Mapping[str, Section]) -> Section | None:
    return next((section for prefix, section in sections.items() if path.startswith(f"{prefix}.")), None)


def _set_path(content: dict[str, Any], path: str, value: Any) -> None:
    """Sets a value in a tree of dictionaries."""
    *parents, name = path.split(".")
    for parent in parents:
        content = content.setdefault(parent, {})
    content[name] = value


def _one_line(text: str | None) -> str:
    return " ".join((text or "").split())
