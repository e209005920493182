"""The results of a query as tables and lines of text for the terminal."""

from collections.abc import Sequence

from rich.table import Table
from rich.text import Text

from bergson_core.schemas.results import ResultRow, Verification


def results_table(title: str, rows: Sequence[ResultRow], marked: frozenset[str] = frozenset()) -> Table:
    """Returns a table of results, with a tick in front of those whose id is in `marked`.

    Behind the id of a document that was cut stand the characters that are shown of it.
    """
    table = Table(title=Text(title), title_justify="left", box=None, pad_edge=False)
    for name in ("", "score", "percentile", "loss", "id"):
        table.add_column(name, justify="right" if name in ("score", "percentile", "loss") else "left")
    table.add_column("document", overflow="fold")
    for row in rows:
        document = Text.assemble(row.prompt or "", (row.completion or "", "bold"))
        tick = Text("✓", "green") if row.id in marked else Text("")
        percentile = "" if row.percentile is None else f"{row.percentile:.2f}"
        loss = "" if row.loss is None else f"{row.loss:.2f}"
        part = f" [{row.chunk.start}:{row.chunk.end}]" if row.chunk else ""
        table.add_row(tick, f"{row.score:+.4f}", percentile, loss, Text(row.id + part), document)
    return table


def verification_table(rows: Sequence[ResultRow], verification: Verification) -> Table:
    """Returns a table of what unlearning each verified result and each random document changed."""
    title = f"change of the completion after unlearning one document (learning rate {verification.learning_rate:.3g})"
    table = Table(title=Text(title), title_justify="left", box=None, pad_edge=False)
    for name in ("log-probability", "probability", "document's own log-probability"):
        table.add_column(name, justify="right")
    table.add_column("id")
    effects = [(row.id, row.verified) for row in rows if row.verified is not None]
    effects += [(f"{control.id} (random)", control) for control in verification.controls]
    for name, effect in effects:
        changes = (effect.log_probability, effect.probability, effect.own_log_probability)
        table.add_row(*("" if change is None else f"{change:+.4f}" for change in changes), Text(name))
    return table


def token_influences(row: ResultRow) -> Text | None:
    """Returns the tokens of a result with their parts of its score, the largest parts in bold."""
    if not row.tokens:
        return None
    return _score_parts([(token.token, token.influence) for token in row.tokens])


def module_influences(row: ResultRow) -> Text | None:
    """Returns the modules of a result with their parts of its score, the largest parts in bold."""
    return _score_parts(list(row.modules.items())) if row.modules else None


def _score_parts(parts: Sequence[tuple[str, float]]) -> Text:
    """Returns names and parts in a line; in bold those of more than half the size of the largest."""
    largest = max(abs(part) for _, part in parts)
    return Text.assemble(
        *((f"{name!r} {part:+.4f}  ", "bold" if 2 * abs(part) > largest else "") for name, part in parts)
    )
