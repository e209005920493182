"""Output that every command shares: the two consoles, plain messages, errors and progress bars."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NoReturn

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as ProgressBars
from rich.text import Text

from bergson_core.schemas.documents import DocumentReport
from bergson_core.schemas.results import Progress
from bergson_core.utils.progress import ProgressCallback

console = Console(highlight=False)
error_console = Console(stderr=True, highlight=False)


def print_message(message: str) -> None:
    """Prints a message on standard output exactly as it is given.

    Square brackets, as in a path, are not read as markup, and long lines are not wrapped, so that a program can
    read the output.
    """
    console.print(message, markup=False, soft_wrap=True)


def print_document_report(report: DocumentReport | None) -> None:
    """Prints what became of documents that are not in the index as they stand, if there are any."""
    for sentence in () if report is None else report.sentences():
        console.print(Text(sentence, "yellow"), soft_wrap=True)


def fail(message: str) -> NoReturn:
    """Prints an error message on standard error and ends the process with status 1."""
    error_console.print(Text.assemble(("error: ", "bold red"), message), soft_wrap=True)
    sys.exit(1)


@contextmanager
def progress_bar() -> Iterator[ProgressCallback]:
    """Yields a function that shows progress on standard error, with a new bar for each stage of the work."""
    columns = (
        TextColumn("{task.description:<11}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
        TimeRemainingColumn(),
    )
    with ProgressBars(*columns, console=error_console) as bars:
        tasks: dict[str, Any] = {}

        def show(progress: Progress) -> None:
            if not (progress.done or progress.total) or progress.stage == "done":
                return
            total = progress.total or None  # The length of a stream is not known.
            if progress.stage not in tasks:
                for earlier in bars.tasks:  # The last report of an earlier stage may have been skipped.
                    bars.update(earlier.id, completed=earlier.total)
                tasks[progress.stage] = bars.add_task(progress.stage, total=total, rate="")
            rate = f"{progress.tokens_per_s:,.0f} tokens/s" if progress.tokens_per_s else ""
            bars.update(tasks[progress.stage], completed=progress.done, total=total, rate=rate)

        yield show
