"""The group of all commands: loads a command when it is run, tells a build from a mistyped command, prints errors."""

import os
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from difflib import SequenceMatcher, get_close_matches
from importlib import import_module
from inspect import signature
from pathlib import Path
from typing import Any, Final, NamedTuple, get_args

import typer
from typer.core import TyperGroup
from typer.main import get_command

from service.cli.support.console import error_console, fail

_UsageError: Final[Any] = typer.BadParameter.__mro__[1]  # Typer exports neither class.
_ClickException: Final[Any] = typer.BadParameter.__mro__[2]
_NO_SUCH_COMMAND: Final = re.compile(r"No such command ('.*?')\.(?: Did you mean (.*))?")
_RESUMED: Final = ("append", "build", "evaluate")
"""Commands that go on where they were stopped when they are run again."""


class CommandSource(NamedTuple):
    """Where a command is defined, and what `bergson --help` says about it without importing it."""

    module: str
    """Module below `service.cli`. It has a function of the command's name, or a `typer.Typer` named `app`."""
    summary: str
    function: str | None = None
    """Name of the function, if it is not that of the command."""


class _LazyCommands(Mapping[str, Any]):
    """The commands by name, each of which is imported when it is looked up."""

    def __init__(self, sources: Mapping[str, CommandSource], context_settings: dict[str, Any]):
        self._sources, self._context_settings = sources, context_settings

    def __getitem__(self, name: str) -> Any:
        source = self._sources[name]
        module = import_module(f"service.cli.{source.module}")
        app = getattr(module, "app", None)
        if app is None:
            app = typer.Typer(add_completion=False, rich_markup_mode="markdown")
            app.command(name, context_settings=self._context_settings)(
                getattr(module, source.function or name)
            )
        for registered in app.registered_commands:
            if registered.callback is not None:
                _parse_paths(registered.callback)
        command = get_command(app)
        command.name = name
        return command

    def __iter__(self) -> Iterator[str]:
        return iter(self._sources)

    def __len__(self) -> int:
        return len(self._sources)


class LazyGroup(TyperGroup):
    """A group whose commands are imported when they are run, and in which an unknown word with `--model` is a build.

    `bergson facts --model …` is short for `bergson build facts --model …`, as is `--models`. Without either, a first
    word that is no command is mistyped. A subclass sets `sources`; `add_stand_ins` adds what `--help` shows of them.
    """

    sources: Mapping[str, CommandSource]

    def __init__(self, **options: Any):
        super().__init__(**options)
        self._stand_ins = self.commands
        self.commands: Any = _LazyCommands(self.sources, dict(self.context_settings))

    def list_commands(self, ctx: Any) -> list[str]:
        """Returns the names of all commands."""
        return list(self.sources)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """Returns a stand-in for a command that only has its summary."""
        return self._stand_ins.get(cmd_name)

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """Imports the command that `args` name."""
        from bergson_core.utils.progress import silence_libraries

        silence_libraries()
        name, stand_in, rest = super().resolve_command(ctx, args)
        return name, stand_in and self.commands[name], rest

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Puts `build` in front of the arguments of a build, and turns `help COMMAND` into `COMMAND --help`."""
        words = [word.replace("-", "_") for word in args[:1]]
        is_build = any(word.partition("=")[0] in ("--model", "--models") for word in args)
        if not words or words[0] in self.sources:
            return super().parse_args(ctx, args)
        if is_build:
            return super().parse_args(ctx, ["build", *args])
        if words == ["help"]:
            return super().parse_args(ctx, [*args[1:2], "--help"])
        if not args[0].startswith("-"):
            options = [word.partition("=")[0] for word in args[1:]]
            if mistyped := get_close_matches("--model", options, n=1, cutoff=0.8):
                raise _UsageError(f"no such option {mistyped[0]}, did you mean --model?", ctx)
            suggestion = self._suggest_command(words[0])
            if suggestion is None and {"--help", "-h"} & set(args):
                return super().parse_args(ctx, ["build", "--help"])
            raise _UsageError(f"no such command '{args[0]}'{_advise(args[0], suggestion)}", ctx)
        return super().parse_args(ctx, args)

    def _suggest_command(self, word: str) -> str | None:
        if "/" in word:
            return None
        return next(iter(get_close_matches(word.lower(), self.sources, n=1)), None)

    def invoke(self, ctx: Any) -> Any:
        """Runs the command. Ctrl-C ends it with status 130, as shells expect, and with a line that says so."""
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            advice = "; the same command goes on from here" if ctx.invoked_subcommand in _RESUMED else ""
            error_console.print(f"interrupted{advice}", markup=False, soft_wrap=True)
            raise typer.Exit(130) from None

    def main(self, *args: Any, standalone_mode: bool = True, **options: Any) -> Any:
        """Runs the command line, and prints an error in the use of it as a plain line, with exit status 2."""
        if not standalone_mode:
            return super().main(*args, standalone_mode=False, **options)
        try:
            status = super().main(*args, standalone_mode=False, **options)
        except _ClickException as error:
            context = getattr(error, "ctx", None)
            # The message of this error is the help text, which was printed.
            if type(error).__name__ == "NoArgsIsHelpError":
                sys.exit(error.exit_code)
            message = _describe(error)
            if context is not None:
                message += f"\n{context.get_usage().strip()}\nTry '{context.command_path} --help'."
            fail(message, error.exit_code)
        sys.exit(status if isinstance(status, int) else 0)


def add_stand_ins(app: typer.Typer, sources: Mapping[str, CommandSource]) -> None:
    """Adds a command to `app` for each source, which has its name and its summary and does nothing."""
    for name, source in sources.items():
        app.command(name, help=source.summary)(lambda: None)


def _parse_paths(command: Callable[..., Any]) -> None:
    """Has every argument and option of a command that is a path read by `_parse_path`."""
    for parameter in signature(command).parameters.values():
        kind, *options = get_args(parameter.annotation) or (None,)
        if Path in (kind, *get_args(kind)):
            for option in options:
                option.parser = _parse_path


def _parse_path(text: str | Path) -> Path:
    """Returns a path with the home directory in place of `~`, which shells leave in quotes and after `=`."""
    if not str(text):
        raise typer.BadParameter("expected a path, got an empty text")
    return Path(os.path.expanduser(text))


def _describe(error: Any) -> str:
    """Returns the message of an error in the use of the command line, with the option that was probably meant."""
    possibilities = getattr(error, "possibilities", None)
    if possibilities and hasattr(error, "option_name"):
        closest = max(possibilities, key=lambda name: SequenceMatcher(None, name, error.option_name).ratio())
        return f"no such option {error.option_name}, did you mean {closest}?"
    message = error.format_message()
    if match := _NO_SUCH_COMMAND.match(message):  # of a group inside this one
        return f"no such command {match[1]}" + (f", did you mean {match[2]}" if match[2] else "")
    if "unexpected extra argument" in message:
        return f"{message}; expected one value after an option: quote one with spaces, and write a span as START:END"
    return message


def _advise(word: str, suggestion: str | None) -> str:
    if suggestion is not None:
        return f", did you mean '{suggestion}'?"
    if (_parse_path(word) / "manifest.json").is_file():
        return f"; to query the index there: bergson query {word}"
    return f"; to build an index there: bergson {word} --model M --dataset D"
