"""Arguments and options that several commands have."""

import json
from collections.abc import Collection
from pathlib import Path
from typing import Annotated, Any, Final

import typer

from bergson_core.errors import InvalidInput
from bergson_core.schemas.build import ExecutorName
from service.cli.support.spec_options import OptionOverride, SpecOptions

IndexDirectory = Annotated[Path, typer.Argument(metavar="INDEX", help="Directory of the index.")]
ExecutorOption = Annotated[
    ExecutorName,
    typer.Option(
        help="Where shards are built and searched: in this process, or on the machines of a Ray cluster."
    ),
]
OverwriteOption = Annotated[bool, typer.Option("--overwrite", help="Replace the file if it exists.")]
EscapeFormulasOption = Annotated[
    bool,
    typer.Option(
        "--escape_formulas",
        help="In CSV, put an apostrophe before texts that spreadsheets take for formulas: those that begin with =, +, "
        "-, @, a tab or a carriage return. By default, texts are written as they are.",
    ),
]
PROFILE_HELP: Final = "Profile to score with: `default`, or one that `bergson profile` has fitted to a task."


def parse_filter(text: str) -> Any:
    """Returns the conditions that `--filter` gives as JSON."""
    try:
        return json.loads(text)
    except ValueError as error:
        raise InvalidInput(
            f'--filter is not JSON ({error}); expected for example {{"source": ["wiki"]}}'
        ) from None


def require_output(output: Path, suffixes: Collection[str], *, overwrite: bool) -> None:
    """Checks that `--output` can be written, before its content is computed.

    Args:
        output: The file.
        suffixes: Suffixes of the files that can be written.
        overwrite: Whether `--overwrite` is given.

    Raises:
        InvalidInput: The file has another suffix, its directory does not exist, or the file exists.
    """
    from bergson_core.utils.table_writer import require_writable

    if output.is_file() and not overwrite:
        raise InvalidInput(f"{output} exists already; expected a new file, or --overwrite to replace it")
    require_writable(output, suffixes, overwrite=overwrite)


def dataset_options(name: str, intro: str) -> SpecOptions:
    """Returns the options of a `DatasetSpec` that is read as a whole: its path and its split.

    Args:
        name: Name of the option that gives the path.
        intro: What the dataset has to contain.
    """
    return SpecOptions(
        options={"path": OptionOverride(name, intro)},
        omitted=frozenset({"subset", "streaming", "text_documents"}),
    )


def parse_between(text: str) -> tuple[int, int]:
    """Returns the checkpoints that `--between` gives, such as `0:-1`.

    Raises:
        InvalidInput: The text is not two numbers.
    """
    earlier, _, later = text.partition(":")
    try:
        return int(earlier), int(later)
    except ValueError:
        raise InvalidInput(
            f"--between: expected EARLIER:LATER, two checkpoints counted from 0 or from the end, such as 0:-1; got "
            f"{text!r}"
        ) from None
