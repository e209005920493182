"""The command line: `bergson <output_path> --model M --dataset D` builds an index, other first words are commands.

It is at the top of the import order, since it starts the service and the worker and calls the library. Each command
parses its options, calls one function and prints the result. Heavy imports are inside the commands, so that `--help`
is quick.
"""

import sys
from typing import Any

import typer
from pydantic import ValidationError
from typer.core import TyperGroup

from bergson_core.errors import BergsonError
from bergson_core.schemas.base import describe_validation_error
from bergson_core.utils.progress import silence_libraries
from service.cli import build, canary, check, demo, evaluate, keys, maintain, query, score, serve
from service.cli.support.console import fail


class BuildByDefault(TyperGroup):
    """A group in which a first word that is no command is the output path of a build.

    `bergson facts --model …` is short for `bergson build facts --model …`.
    """

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Puts the command `build` in front of arguments that start with a path."""
        if args and not args[0].startswith("-") and args[0].replace("-", "_") not in self.commands:
            args = ["build", *args]
        return super().parse_args(ctx, args)


app = typer.Typer(
    cls=BuildByDefault,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Which training samples made this language model say that?\n\n"
    "`bergson OUTPUT_PATH --model M --dataset D` builds an index, `bergson query OUTPUT_PATH` queries it, and "
    "`bergson up` serves indexes over HTTP.",
    rich_markup_mode="markdown",
    # Makes --top-k another spelling of --top_k, and self-influence one of self_influence.
    context_settings={"token_normalize_func": lambda name: name.replace("-", "_")},
)
app.command("build")(build.build)
app.command("estimate")(build.estimate)
app.command("query")(query.query)
app.command("profile")(maintain.profile)
app.command("append")(maintain.append)
app.command("takedown")(maintain.takedown)
app.command("compact")(maintain.compact)
app.command("checksum")(maintain.checksum)
app.command("score")(score.score)
app.command("self_influence")(score.self_influence)
app.command("evaluate")(evaluate.evaluate)
app.command("check")(check.check)
app.command("canary")(canary.canary)
app.command("up")(serve.up)
app.command("serve")(serve.serve)
app.command("worker")(serve.worker)
app.command("demo")(demo.demo)
app.add_typer(keys.app, name="keys")


def main() -> None:
    """Runs the command line. An error that the user can correct is printed in a line or two, with exit status 1."""
    silence_libraries()
    try:
        app()
    except ValidationError as error:
        fail(describe_validation_error(error, "settings"))
    except BergsonError as error:
        fail(str(error))
    except KeyboardInterrupt:
        sys.exit(130)
