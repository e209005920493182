"""Output that every command shares: the two consoles, plain messages, errors and progress bars."""

import csv
import json
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final, Literal, NoReturn

from rich.console import Console, ConsoleDimensions
from rich.table import Table
from rich.text import Text

from bergson_core.utils.background import compute_in_this_thread

if TYPE_CHECKING:
    from bergson_core.schemas.documents import DocumentReport
    from bergson_core.schemas.results import Progress
    from bergson_core.utils.progress import ProgressCallback

OutputFormat = Literal["table", "json", "csv"]
FORMAT_HELP: Final = (
    "How to print it: a table for people, JSON as the service returns it, or CSV with a header."
)
_UNLIMITED: Final = ConsoleDimensions(2**20, 25)


class _Console(Console):
    """A console that cuts and wraps nothing where its output goes to a file or to another program."""

    @property
    def size(self) -> ConsoleDimensions:  # pyright: ignore - it needs no setter
        """The size of the terminal, or a size that any line fits into."""
        return super().size if self.file.isatty() else _UNLIMITED

    def print(self, *objects: Any, **options: Any) -> None:
        """Prints the objects; a table ends its lines without spaces where there is no terminal."""
        if self.file.isatty() or not any(isinstance(item, Table) for item in objects):
            return super().print(*objects, **options)
        with self.capture() as captured:
            super().print(*objects, **options)
        self.file.write("\n".join(line.rstrip(" ") for line in captured.get().split("\n")))


console = _Console(highlight=False)
error_console = _Console(stderr=True, highlight=False)


def print_json(content: Any) -> None:
    """Prints JSON. Characters that the output cannot encode are escaped."""
    print_message(json.dumps(content, indent=2, ensure_ascii=console.encoding != "utf-8"))


def print_csv(columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """Prints rows as CSV with a header. Nothing is an empty cell; lists and objects are JSON."""
    writer = csv.writer(console.file, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows([_csv_cell(value) for value in row] for row in rows)


def _csv_cell(value: Any) -> Any:
    return json.dumps(value, ensure_ascii=False) if isinstance(value, dict | list | bool) else value


def print_message(message: str) -> None:
    """Prints a message on standard output exactly as it is given.

    Square brackets, as in a path, are not read as markup, and long lines are not wrapped, so that a program can
    read the output.
    """
    console.print(message, markup=False, soft_wrap=True)


def print_warning(message: str) -> None:
    """Prints a warning on standard error, so that it is not mistaken for output."""
    error_console.print(Text.assemble(("warning: ", "bold yellow"), message), soft_wrap=True)


def print_document_report(report: "DocumentReport | None") -> None:
    """Prints what became of documents that are not in the index as they stand, if there are any."""
    for sentence in () if report is None else report.sentences():
        print_warning(sentence)


def fail(message: str, status: int = 1) -> NoReturn:
    """Prints an error message on standard error and ends the process with this status."""
    error_console.print(Text.assemble(("error: ", "bold red"), message), soft_wrap=True)
    sys.exit(status)


@contextmanager
def progress_bar() -> "Iterator[ProgressCallback]":
    """Yields a function that shows progress on standard error, with a new bar for each stage of the work.

    A terminal shows the name of a stage when it begins, and an output of another kind only stages that count something.
    The work runs in the thread of the context, since bars need no more than a report after each of its steps.
    """
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as ProgressBars

    columns = (
        TextColumn("{task.description:<14}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
        TimeRemainingColumn(),
    )
    bars, tasks = ProgressBars(*columns, console=error_console), dict[str, Any]()

    def show(progress: "Progress") -> None:
        if progress.stage == "done":
            return
        if not (progress.done or progress.total or error_console.is_terminal):
            return
        bars.start()  # Only now: bars end with an empty line, also where there were none.
        total = progress.total or None  # The length of a stream is not known.
        if progress.stage not in tasks:
            for earlier in bars.tasks:  # The last report of an earlier stage may have been skipped.
                count = earlier.total or earlier.completed or 1
                bars.update(earlier.id, completed=count, total=count)
            tasks[progress.stage] = bars.add_task(progress.stage, total=total, rate="")
        rate = f"{progress.tokens_per_s:,.0f} tokens/s" if progress.tokens_per_s else ""
        bars.update(tasks[progress.stage], completed=progress.done, total=total, rate=rate)

    try:
        with compute_in_this_thread():
            yield show
    finally:
        if tasks:
            bars.stop()
