"""Tables of the main methods over all cases: what docs/quality.md shows.

They are made of the JSON files that `Results.write` has left, and need no models. A cell has the value and its 95 %
interval. Bytes are those of a document's row in the case, in order of the cases.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from benchmarks.quality.interventions import REMOVAL, TAIL_PATCH
from benchmarks.quality.measures import ANTI, ANTI_LAST, LDS, LDS_THRESHOLDED, MRR
from benchmarks.quality.methods import (
    BM25,
    DEFAULT,
    FOREIGN_GROUP,
    GOLD,
    RANDOM,
    RECOMMENDED,
    REFERENCE,
    REPRESENTATIONS,
    SMALL_ROWS,
)
from benchmarks.quality.rescoring import FIRST_KEPT, ROWS, rescored_name
from bergson_core.utils.atomic_files import write_atomically

MAIN_METHODS: Final[Sequence[str]] = (
    RANDOM,
    BM25,
    REPRESENTATIONS,
    GOLD,
    "none, not projected, none, all",
    "none, not projected, row, all",
    "adafactor, not projected, row, all",
    REFERENCE,
    "kfac, not projected, row, mlp",
    "kfac, not projected, row, down",
    "ekfac, not projected, row, all",
    DEFAULT,
    "adafactor, float16, p = 32, C, row, all",
    "adafactor, sign, p = 64, block, mlp",
    SMALL_ROWS,
    "kfac, sign, p = 64, block, all",
    "kfac, sign, p = 64, block, mlp",
    RECOMMENDED,
    "kfac, sign, p = 128, block, mlp",
    "kfac, sign, p = 128, block, down",
    "kfac, bits2, p = 96, block, mlp",
    "kfac, float16, p = 96, block, mlp",
    *map(rescored_name, ROWS),
)
"""The methods of the tables. Those of other programs follow them."""
MEASURES: Final[Mapping[str, tuple[str, str | None]]] = {
    LDS: ("LDS of the scores as they are", None),
    LDS_THRESHOLDED: ("LDS, thresholded, and its share of that of whole gradients with K-FAC", "of_kfac"),
    MRR: ("MRR", None),
    REMOVAL: (
        "Rise of the loss without the best 1 %, in nats, and its quotient by the rise without BM25's",
        "of_bm25",
    ),
    FIRST_KEPT: ("Share of the first ten that stay when the best 100 are scored by whole gradients", None),
    TAIL_PATCH: ("Tail-patch, nats", None),
    ANTI: ("Share of documents that contradict the query among the first ten", None),
    ANTI_LAST: ("Share of documents that contradict the query among the last ten", None),
}
"""Name of a measure → heading of its table, and what stands in brackets."""


def write_summary(directory: Path) -> Path:
    """Writes a table for each measure of the cases whose numbers are in a directory, and returns its path."""
    cases = [json.loads(path.read_text()) for path in sorted(directory.glob("*.json"))]
    cases = [case for case in cases if "methods" in case]
    lines = [line for measure in MEASURES for line in _iter_table(measure, cases)]
    path = directory / "summary.md"
    write_atomically(path, ("\n".join(lines) + "\n").encode())
    return path


def _iter_table(measure: str, cases: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """Yields the lines of a table; none if no case has the measure."""
    cases = [case for case in cases if any(measure in method for method in case["methods"].values())]
    foreign = {
        name: None
        for case in cases
        for name, method in case["methods"].items()
        if method["group"] == FOREIGN_GROUP
    }
    if not cases:
        return
    heading, relative = MEASURES[measure]
    yield from (f"## {heading}", "", f"| method | bytes | {' | '.join(case['case'] for case in cases)} |")
    yield f"|---|---:|{'---:|' * len(cases)}"
    for name in (*MAIN_METHODS, *foreign):
        methods = [case["methods"].get(name, {}) for case in cases]
        if any(measure in method for method in methods):
            sizes = dict.fromkeys(f"{size:,}" for method in methods if (size := method.get("row_bytes")))
            cells = [_cell(method.get(measure), relative) for method in methods]
            yield f"| {name} | {', '.join(sizes)} | {' | '.join(cells)} |"
    yield ""


def _cell(numbers: Mapping[str, Any] | None, relative: str | None) -> str:
    """Returns a value with its interval, and in brackets the quotient."""
    if numbers is None or numbers["mean"] is None:
        return ""
    interval = "" if numbers["low"] is None else f" [{numbers['low']:.3f}, {numbers['high']:.3f}]"
    quotient = numbers.get(relative, {}).get("mean") if relative is not None else None
    return f"{numbers['mean']:.3f}{interval}" + ("" if quotient is None else f" ({quotient:.0%})")
