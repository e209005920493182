"""The results of a query as tables and lines of text for the terminal."""

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from rich.table import Table
from rich.text import Text

from bergson_core.schemas.answer_parts.verification import Verification
from bergson_core.schemas.results import ResultRow

_FACTS: Final[Mapping[str, Callable[[ResultRow], str]]] = {
    "score": lambda row: f"{row.score:+.4f}",
    "interval": lambda row: _interval_text(row.interval),
    "percentile": lambda row: "" if row.percentile is None else f"{row.percentile:.2f}",
    "strength": lambda row: row.strength or "",
    "loss": lambda row: "" if row.loss is None else f"{row.loss:.2f}",
    "exact": lambda row: _yes_or_no(row.exact),
    "words": lambda row: "" if row.words is None or row.words.rank is None else f"#{row.words.rank}",
    "states": lambda row: "" if row.words is None else _yes_or_no(row.words.states),
    "sum of the group": lambda row: "" if row.group is None else f"{row.group.score:+.4f}",
    "interval of the sum": lambda row: _interval_text(row.group and row.group.interval),
    "strength of the group": lambda row: (row.group and row.group.strength) or "",
    "group": lambda row: _group_text(row),
}
"""The columns of a table before the id, in order, each with what it shows of a result."""
_SHOWN_IF: Final = {
    "interval": "interval",
    "strength": "strength",
    "exact": "exact",
    "words": "words",
    "states": "words",
    "sum of the group": "group",
    "interval of the sum": "group",
    "strength of the group": "group",
    "group": "group",
}
"""Columns that are there if any result has something in a field, with the name of this field."""
_LEFT: Final = ("strength", "exact", "states", "strength of the group", "group")
"""Columns of words, which stand on the left."""


def results_table(title: str, rows: Sequence[ResultRow], marked: frozenset[str] = frozenset()) -> Table:
    """Returns a table of results, with a tick in front of those whose id is in `marked`.

    Below a preference pair stands its rejected completion. Behind the id of a document that was cut stand the
    characters that are shown of it. Columns with intervals, with the strength of influences, for exact scores, and with
    the rank by BM25 and whether the completion is stated are there if any result has them.
    """
    table = Table(title=Text(title), title_justify="left", box=None, pad_edge=False)
    table.add_column("", no_wrap=True)
    facts = _fact_columns(rows)
    for name in facts:
        table.add_column(name, justify="left" if name in _LEFT else "right", no_wrap=True)
    columns = _metadata_columns(rows)
    has_text = any(row.prompt or row.completion for row in rows)
    for name in ("id", *columns, *["document"] * has_text):
        table.add_column(Text(name), overflow="fold")
    for row in rows:
        rejected = ("" if row.rejected is None else f"\nrejected: {row.rejected}", "dim")
        document = Text.assemble(row.prompt or "", (row.completion or "", "bold"), rejected)
        tick = Text("✓", "green") if row.id in marked else Text("")
        metadata = [Text(_metadata_text((row.metadata or {}).get(name))) for name in columns]
        part = f" [{row.chunk.start}:{row.chunk.end}]" if row.chunk else ""
        cells = (Text(_FACTS[name](row)) for name in facts)
        table.add_row(tick, *cells, Text(row.id + part), *metadata, *[document] * has_text)
    return table


def _fact_columns(rows: Sequence[ResultRow]) -> list[str]:
    """Returns the columns before the id."""
    return [
        name
        for name in _FACTS
        if name not in _SHOWN_IF or any(getattr(row, _SHOWN_IF[name]) not in (None, False) for row in rows)
    ]


def _group_text(row: ResultRow) -> str:
    if row.group is None:
        return ""
    count = f"{row.group.count:,} document{'s' * (row.group.count != 1)}"
    value = _metadata_text(row.group.value)
    return f"{value}: {count}" if value else count


def _interval_text(interval: tuple[float, float] | None) -> str:
    return "" if interval is None else "{:+.4f} to {:+.4f}".format(*interval)


def _yes_or_no(value: bool) -> str:
    return "yes" if value else "no"


def _metadata_columns(rows: Sequence[ResultRow]) -> list[str]:
    """Returns the names of the metadata of any result, in the order in which they occur."""
    return list(dict.fromkeys(name for row in rows for name in row.metadata or ()))


def _metadata_text(value: Any) -> str:
    if value is None:
        return ""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def verification_table(rows: Sequence[ResultRow], verification: Verification) -> Table:
    """Returns a table of what unlearning results and random documents changed, one by one and together."""
    title = f"change of the completion after unlearning documents (learning rate {verification.learning_rate:.3g})"
    table = Table(title=Text(title), title_justify="left", box=None, pad_edge=False)
    for name in ("log-probability", "probability", "document's own log-probability"):
        table.add_column(name, justify="right")
    table.add_column("id")
    effects = [(row.id, row.verified) for row in rows if row.verified is not None]
    effects += [(f"{control.id} (random)", control) for control in verification.controls]
    for kind, together in (
        ("results", verification.together),
        ("opponents", verification.opponents_together),
    ):
        if together is not None:
            count = len(together.ids)
            effects.append((f"{count} {kind} together", together))
            effects.append((f"{count} {kind}, sum of the single steps", together.sum))
            effects += [(f"{count} documents together (random)", group) for group in together.controls]
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
