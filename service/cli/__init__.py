"""The command line: `bergson <output_path> --model M --dataset D` builds an index, other first words are commands.

It is at the top of the import order, since it starts the service and the worker and calls the library. Each command
parses its options, calls one function and prints the result. A command is imported when it is run, and it imports the
library where it needs it, so that `bergson --help` and its errors are quick.
"""

import errno
import os
import sys
from importlib.util import find_spec
from io import TextIOWrapper
from typing import TYPE_CHECKING, Annotated, Final, NoReturn

import typer

from bergson_core.errors import BergsonError
from bergson_core.utils.disk_errors import find_disk_error
from bergson_core.version import __version__
from service.cli.support.command_group import CommandSource, LazyGroup, add_stand_ins
from service.cli.support.console import fail

if TYPE_CHECKING:
    from pydantic import ValidationError

_COMMANDS: Final = {
    "build": CommandSource("build", "Build an index of the gradients of a dataset's documents."),
    "estimate": CommandSource("build", "Estimate what a build would take, by running a part of it."),
    "query": CommandSource("query", "Find the training samples that made the model say a completion."),
    "list": CommandSource("inspect", "List the indexes in a directory.", "list_indexes"),
    "info": CommandSource("inspect", "Show what an index holds and how it was built."),
    "profile": CommandSource("maintain", "Fit a preconditioner to a task from a sample of its queries."),
    "append": CommandSource("maintain", "Add documents to an index."),
    "takedown": CommandSource("maintain", "Hide documents from every answer, at once and for good."),
    "compact": CommandSource("maintain", "Remove the bytes of the documents that were taken down."),
    "checksum": CommandSource("maintain", "Compare the checksums of an index's files with its manifest."),
    "relocate": CommandSource("relocate", "Record where the model or dataset of an index is now."),
    "behaviours": CommandSource(
        "query_sets.behaviours", "Create, list, show and delete behaviours: sets of queries that are kept."
    ),
    "score": CommandSource("score", "Score every document against a set of queries, or a behaviour."),
    "self_influence": CommandSource("score", "Score every document against itself."),
    "unlearn": CommandSource("unlearn", "Preview what unlearning some documents together would do."),
    "evaluate": CommandSource("evaluate", "Measure an index against BM25 and other baselines."),
    "check": CommandSource("check", "Compare a model's gradients alone, batched, and in each precision."),
    "canary": CommandSource("canary", "Send a fixed set of queries to a running service."),
    "up": CommandSource("serve", "Run Redis, workers and the web service until Ctrl-C."),
    "serve": CommandSource("serve", "Run only the web service."),
    "worker": CommandSource("serve", "Run one worker, which builds indexes and answers queries."),
    "mcp": CommandSource("serve", "Let assistants ask a running service (Model Context Protocol)."),
    "demo": CommandSource("demo", "Train a small model on invented facts, index it, and query it."),
    "keys": CommandSource("keys", "Create, list and revoke API keys of the service."),
}
_NEEDS_TORCH: Final = (
    "this command runs a model, and torch is not installed: install bergson-service in place of bergson-service-web "
    "(`pip install .` in a checkout), or ask a running service with --url where the command has this option"
)
_WRITE_ERRORS: Final = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EBADF)


class _BergsonGroup(LazyGroup):
    sources = _COMMANDS


app = typer.Typer(
    cls=_BergsonGroup,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Which training samples made this language model say that?\n\n"
    "`bergson OUTPUT_PATH --model M --dataset D` builds an index, `bergson query OUTPUT_PATH` queries it, and "
    "`bergson up` serves indexes over HTTP.\n\n"
    "`--preset best` takes the settings with the best measured quality, `--preset trackstar` those of TrackStar, and "
    "`--preset default` the defaults. An option that you give overrides the preset's value; `bergson build --help` "
    "lists the values.",
    rich_markup_mode="markdown",
    # Makes --top-k another spelling of --top_k, and self-influence one of self_influence.
    context_settings={
        "token_normalize_func": lambda name: name.replace("-", "_"),
        "help_option_names": ["--help", "-h"],
    },
)


add_stand_ins(app, _COMMANDS)


def _print_version(is_given: bool) -> None:
    if is_given:
        typer.echo(f"bergson {__version__}")
        raise typer.Exit


@app.callback()
def _all_commands(
    version: Annotated[
        bool,
        typer.Option("--version", help="Print the version and exit.", callback=_print_version, is_eager=True),
    ] = False,
) -> None: ...


def main() -> None:
    """Runs the command line. An error that the user can correct is printed in a line or two, with exit status 1."""
    if sys.stdout is None:
        fail("standard output is closed; expected a terminal, a file, a pipe or /dev/null")
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            # Not every locale can encode every text, and UTF-8 cannot encode a lone surrogate.
            stream.reconfigure(errors="backslashreplace")
    try:
        app(prog_name="bergson")
    except BergsonError as error:
        fail(f"{error}{_explain_encoding()}")
    except ValueError as error:
        from pydantic import ValidationError

        if not isinstance(error, ValidationError):
            raise
        fail(_describe_validation_error(error))
    except ModuleNotFoundError:
        if find_spec("torch") is not None:
            raise
        fail(_NEEDS_TORCH)
    except OSError as error:
        if error.filename is not None and (named := find_disk_error(error)) is not None:
            fail(str(named))
        # A write has no name of a file, unlike an attempt to open one.
        if error.filename is not None or error.errno not in _WRITE_ERRORS:
            raise
        _fail_to_write(error)
    finally:
        _flush_output()


def _describe_validation_error(error: "ValidationError") -> str:
    """Returns which environment variables are wrong, or else which options."""
    from bergson_core.schemas.base import describe_validation_error
    from service.settings import ClientSettings, ServiceSettings
    from worker.settings import describe_settings_error

    for settings in (ServiceSettings, ClientSettings):
        if error.title == settings.__name__:
            return describe_settings_error(error, settings)
    return describe_validation_error(error, "options")


def _explain_encoding() -> str:
    """Returns what to do about arguments that the locale cannot decode, or an empty text if there are none."""
    encoding = sys.getfilesystemencoding()
    is_undecoded = any("\udc80" <= char <= "\udcff" for argument in sys.argv for char in argument)
    if not is_undecoded or encoding == "utf-8":
        return ""
    return f"; the locale has the encoding {encoding}, which an argument is not in: set LC_ALL=C.UTF-8 or PYTHONUTF8=1"


def _flush_output() -> None:
    """Writes what is left to write, unless the program that was to read it has ended, as `head` does.

    Where it cannot be written, as on a full disk, this is the error of the command, whose output is not whole.
    """
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        _discard_output()
    except OSError as error:
        _fail_to_write(error)


def _discard_output() -> None:
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _fail_to_write(error: OSError) -> NoReturn:
    _discard_output()  # or else the next attempt fails as well
    fail(f"the output cannot be written: {error.strerror}")
