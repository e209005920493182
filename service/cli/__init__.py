"""The command line: `bergson <output_path> --model M --dataset D` builds; other verbs are commands.

It stands at the top of the imports, since it starts the service and the worker as well as the library. Each
command parses, calls one function, and prints; heavy imports wait until a command needs them.
"""

import sys
from typing import Any

import typer
from pydantic import ValidationError
from typer.core import TyperGroup

from bergson_core.errors import BergsonError
from bergson_core.utils.progress import silence_libraries
from service.cli import build, canary, check, demo, evaluate, keys, modify, query, score, serve
from service.cli.support.output import fail


class BuildByDefault(TyperGroup):
    """`bergson facts --model …` is `bergson build facts --model …`: a first word that is no command is a path."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if args and not args[0].startswith("-") and args[0].replace("-", "_") not in self.commands:
            args = ["build", *args]
        return super().parse_args(ctx, args)


app = typer.Typer(
    cls=BuildByDefault,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Which training samples made this language model say that?\n\n"
    "`bergson OUTPUT_PATH --model M --dataset D` builds an index; `bergson query OUTPUT_PATH` asks it; "
    "`bergson up` serves indexes over HTTP.",
    rich_markup_mode="markdown",
    context_settings={"token_normalize_func": lambda name: name.replace("-", "_")},  # --top-k is --top_k
)
app.command("build")(build.build)
app.command("estimate")(build.estimate)
app.command("query")(query.query)
app.command("profile")(query.profile)
app.command("append")(modify.append)
app.command("takedown")(modify.takedown)
app.command("compact")(modify.compact)
app.command("verify")(modify.verify)
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
    """Runs the command line. What a user can mend is said in a line or two, with exit status 1."""
    silence_libraries()
    try:
        app()
    except ValidationError as error:
        fail("\n".join(map(_say, error.errors())))
    except BergsonError as error:
        fail(str(error))
    except KeyboardInterrupt:
        sys.exit(130)


def _say(wrong: Any) -> str:
    where = ".".join(map(str, wrong["loc"])) or "settings"
    return f"{where}: {wrong['msg'].removeprefix('Value error, ')}; got {wrong['input']!r}"
