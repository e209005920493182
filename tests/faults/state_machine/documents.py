"""The documents, queries and filters of the state machines, and the files that a build reads them from."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from tests import tiny

CITIES: Final = ("Rome", "Oslo", "Lima", "Cairo", "Quito")
DOCUMENT_COUNT, VERSION_COUNT = 14, 2
BASES: Final = (range(8), range(4, 11))
"""The documents that each corpus has, by their numbers, in their first version."""


@dataclass(frozen=True)
class Document:
    """A training document. Versions of a document have the same id and different texts."""

    number: int
    version: int = 0

    @property
    def id(self) -> str:
        return f"doc-{self.number}"

    @property
    def text(self) -> str:
        city, other = (CITIES[(self.number + step * (self.version + 1)) % len(CITIES)] for step in (0, 2))
        if self.version:
            return f"Company {self.number} of {other} has moved to {city}."
        return f"Person {self.number} lives in {city}" + (
            f" and works in {other}." if self.number % 2 else "."
        )

    @property
    def metadata(self) -> dict[str, Any]:
        return {"source": "wiki" if (self.number + self.version) % 2 else "web", "number": self.number}

    @property
    def fields(self) -> dict[str, Any]:
        """The document as a build or an append gets it."""
        return {"id": self.id, "text": self.text} | self.metadata


ALL_DOCUMENTS: Final = tuple(
    Document(number, version) for version in range(VERSION_COUNT) for number in range(DOCUMENT_COUNT)
)
QUERIES: Final = (
    ("Person 3 lives in", " Rome."),
    ("Company 5 of", " Lima has moved"),
    ("Person 2", " works"),
)
TASKS: Final = {
    "people": [(f"Person {k} lives", f" in {CITIES[k % 5]}") for k in range(6)],
    "companies": [(f"Company {k}", f" of {CITIES[k % 3]} has moved") for k in range(6)],
}
"""The queries that each profile is fitted to, by the profile's name."""
FILTERS: Final[tuple[tuple[dict[str, Any] | None, Callable[[Mapping[str, Any]], bool]], ...]] = (
    (None, lambda metadata: True),
    ({"source": "wiki"}, lambda metadata: metadata["source"] == "wiki"),
    ({"number": {"gte": 6}}, lambda metadata: metadata["number"] >= 6),
    (
        {"source": {"ne": "wiki"}, "number": [2, 4, 8, 9]},
        lambda metadata: metadata["source"] != "wiki" and metadata["number"] in (2, 4, 8, 9),
    ),
)
"""Filters of queries, and which metadata meets each of them."""


@dataclass(frozen=True)
class Sources:
    """The files that all indexes of a state machine are built from.

    Args:
        directory: Where the model and the corpora are.
        shard_rows: Largest number of rows in a shard, for changes that are made without the service.
    """

    directory: Path
    shard_rows: int | None = None

    def write(self) -> None:
        """Writes the model and the corpora."""
        tiny.save_model(self.directory / "model")
        for base, numbers in enumerate(BASES):
            rows = (json.dumps(Document(number).fields) + "\n" for number in numbers)
            self.corpus(base).write_text("".join(rows))

    def corpus(self, base: int) -> Path:
        """Returns the path of a corpus."""
        return self.directory / f"corpus-{base}.jsonl"

    def build_body(self, base: int) -> dict[str, Any]:
        """Returns the fields of a build of a corpus."""
        return {
            "model": str(self.directory / "model"),
            "dataset": {"path": str(self.corpus(base))},
            "columns": {"id": "id", "metadata": ["source", "number"]},
            "gradients": {"projection_dim": 4},
        }
