"""The figures of docs/reliability.md: how often a promise was put to the test, by how many faults, and what was lost.

A test hands its figures to the fixture `record`. They travel in the report of the test, also from another process of
pytest-xdist, and tests/faults/conftest.py prints them as a table at the end of the run.
"""

from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields
from typing import Any

_PROPERTY = "figures"


@dataclass(frozen=True)
class Figures:
    """What one test has to say about one promise; the figures of the same promise are added up.

    Args:
        promise: The promise, as docs/reliability.md has it.
        runs: Pieces of work that were put to the test: jobs, requests or files.
        kills: Faults that they met: processes killed or frozen, connections cut, bytes flipped.
        lost: Pieces of work that did not end as promised.
    """

    promise: str
    runs: int
    kills: int = 0
    lost: int = 0

    def to_property(self) -> tuple[str, dict[str, Any]]:
        """Returns the figures as a property of a test, which pytest-xdist sends as JSON."""
        return _PROPERTY, asdict(self)


def add_up(properties: Iterable[tuple[str, Any]]) -> list[Figures]:
    """Returns the figures among the properties of tests, those of the same promise added up."""
    sums: dict[str, Figures] = {}
    for name, value in properties:
        if name == _PROPERTY:
            new = Figures(**value)
            old = sums.get(new.promise, Figures(new.promise, 0))
            sums[new.promise] = Figures(
                new.promise, old.runs + new.runs, old.kills + new.kills, old.lost + new.lost
            )
    return list(sums.values())


def format_table(figures: Iterable[Figures]) -> list[str]:
    """Returns the lines of a Markdown table."""
    rows = [[field.name for field in fields(Figures)], ["---", "---:", "---:", "---:"]]
    rows += [[str(value) for value in asdict(entry).values()] for entry in figures]
    return ["| " + " | ".join(row) + " |" for row in rows]
