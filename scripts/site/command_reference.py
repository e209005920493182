"""The reference of the command line, as Markdown made from the commands themselves."""

from collections.abc import Iterator, Mapping, Sequence
from inspect import Parameter, signature
from typing import Any, Final, Literal, get_args, get_origin

from typer.main import get_command

from service.cli import app

_HEAD: Final = """# Command line

Every option of every command, as `bergson COMMAND --help` shows them.
"""


def command_reference() -> str:
    """Returns a page with every command of `bergson`, its arguments, its options and their defaults."""
    return _HEAD + "\n" + "\n".join(_commands("bergson", get_command(app))) + "\n"


def _commands(name: str, command: Any) -> Iterator[str]:
    if subcommands := getattr(command, "commands", {}):
        if name != "bergson":
            yield f"## {name}\n\n{_text(command.help)}\n"
        for word, subcommand in subcommands.items():
            yield from _commands(f"{name} {word}", subcommand)
        return
    parameters = [parameter for parameter in command.params if not parameter.hidden]
    arguments = [_argument(parameter) for parameter in parameters if parameter.param_type_name == "argument"]
    usage = " ".join([name, "[OPTIONS]", *arguments])
    yield f"## {name}\n\n```console\n$ {usage}\n```\n\n{_text(command.help)}\n"
    yield "| | type | default | |\n|---|---|---|---|"
    annotations = signature(command.callback).parameters
    for parameter in parameters:
        yield _row(parameter, annotations)
    yield ""


def _row(parameter: Any, annotations: Mapping[str, Parameter]) -> str:
    is_argument = parameter.param_type_name == "argument"
    flags = [_argument(parameter)] if is_argument else [*parameter.opts, *parameter.secondary_opts]
    annotation = annotations.get(parameter.name)
    kind = _type_name(get_args(annotation.annotation)[0]) if annotation else ""
    has_default = parameter.default not in (None, (), [], "") and parameter.default is not False
    cells = (
        ", ".join(f"`{flag}`" for flag in flags),
        kind,
        "required" if parameter.required else f"`{parameter.default}`" if has_default else "",
        _text(parameter.help),
    )
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"


def _argument(parameter: Any) -> str:
    return parameter.metavar or parameter.name.upper()


def _type_name(kind: Any) -> str:
    """Returns the name of a type, or the values that a literal has, for people."""
    choices = [_type_name(choice) for choice in get_args(kind) if choice is not type(None)]
    if get_origin(kind) is Literal:
        return " or ".join(f"`{choice}`" for choice in get_args(kind))
    if get_origin(kind) in (list, tuple, Sequence):
        return f"{choices[0]}, repeatable"
    return " or ".join(choices) if choices else getattr(kind, "__name__", str(kind))


def _text(text: str | None) -> str:
    """Returns a help text in one line, as it stands in a table."""
    return " ".join((text or "").replace("\b", " ").replace("\f", " ").split())
