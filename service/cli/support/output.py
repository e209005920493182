"""What the commands share in showing things: help from the specs, progress bars, tables, errors."""

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NoReturn, Protocol

from pydantic import BaseModel
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from bergson_core.schemas import results

console = Console(highlight=False)
errors = Console(stderr=True, highlight=False)


def print_message(message: str) -> None:
    """Prints a line as it is: brackets in a path are no markup, and what reads the output meets no break in it."""
    console.print(message, markup=False, soft_wrap=True)


def fail(message: str) -> NoReturn:
    """Says what is wrong on standard error and ends with status 1."""
    errors.print(Text.assemble(("error: ", "bold red"), message), soft_wrap=True)
    sys.exit(1)


def help_text(spec: type[BaseModel], field: str) -> str:
    """The help of an option: the docstring of the field that it sets."""
    return (spec.model_fields[field].description or "").replace("\n", " ")


class Bar(Protocol):
    """Shows the progress of the stage at hand."""

    def __call__(self, progress: results.Progress) -> None: ...


@contextmanager
def progress_bar() -> Iterator[Bar]:
    """A bar for each stage of a build, on standard error."""
    columns = (
        TextColumn("{task.description:<11}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=errors) as bars:
        tasks: dict[str, Any] = {}

        def show(progress: results.Progress) -> None:
            if not (progress.done or progress.total) or progress.stage == "done":
                return
            total = progress.total or None  # not known: of a stream
            if progress.stage not in tasks:
                for earlier in bars.tasks:  # its last report may have been skipped
                    bars.update(earlier.id, completed=earlier.total)
                tasks[progress.stage] = bars.add_task(progress.stage, total=total, rate="")
            rate = f"{progress.tokens_per_s:,.0f} tokens/s" if progress.tokens_per_s else ""
            bars.update(tasks[progress.stage], completed=progress.done, total=total, rate=rate)

        yield show


def results_table(
    title: str, rows: Sequence[results.ResultRow], marked: frozenset[str] = frozenset()
) -> Table:
    """Results as a table; rows whose id is in `marked` get a tick."""
    table = Table(title=Text(title), title_justify="left", box=None, pad_edge=False)
    for name in ("", "score", "percentile", "loss", "id"):
        table.add_column(name, justify="right" if name in ("score", "percentile", "loss") else "left")
    table.add_column("sample", overflow="fold")
    for row in rows:
        sample = Text.assemble(row.prompt or "", (row.completion or "", "bold"))
        tick = Text("✓", "green") if row.id in marked else Text("")
        standing = "" if row.percentile is None else f"{row.percentile:.2f}"
        loss = "" if row.loss is None else f"{row.loss:.2f}"
        table.add_row(tick, f"{row.score:+.4f}", standing, loss, Text(row.id), sample)
    return table


def verified_table(rows: Sequence[results.ResultRow], verification: results.Verification) -> Table:
    """What unlearning the rows that were verified changed, and what random samples do."""
    title = (
        f"unlearned, one by one (learning rate {verification.learning_rate:.3g}): change of the completion's"
    )
    table = Table(title=Text(title), title_justify="left", box=None, pad_edge=False)
    for name in ("log-probability", "probability", "own log-probability"):
        table.add_column(name, justify="right")
    table.add_column("id")
    found = [(row.id, row.verified) for row in rows if row.verified is not None]
    found += [(f"{one.id} (random)", one) for one in verification.controls]
    for name, one in found:
        changes = (one.log_probability, one.probability, one.own_log_probability)
        table.add_row(*("" if change is None else f"{change:+.4f}" for change in changes), Text(name))
    return table


def token_table(row: results.ResultRow) -> Text | None:
    """The tokens of a result with their parts of its score; the largest in bold."""
    return _parts([(one.token, one.influence) for one in row.tokens]) if row.tokens else None


def module_table(row: results.ResultRow) -> Text | None:
    """The modules of a result with their parts of its score; the largest in bold."""
    return _parts(list(row.modules.items())) if row.modules else None


def _parts(parts: Sequence[tuple[str, float]]) -> Text:
    largest = max(abs(part) for _, part in parts)
    return Text.assemble(
        *((f"{name!r} {part:+.4f}  ", "bold" if 2 * abs(part) > largest else "") for name, part in parts)
    )
