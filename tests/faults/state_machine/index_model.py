"""`IndexModel`: what is known of an index without looking at it."""

import copy
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

from bergson_core.errors import IndexNotFound
from bergson_core.storage.layout import TAKEDOWN_LOG_FILE
from bergson_core.storage.manifest import read_manifest
from tests.faults.state_machine.documents import BASES, Document

State = tuple[int, int] | None
"""Generation of an index and number of its takedowns; None where there is no index."""


@dataclass
class IndexModel:
    """A published index, as it has to be.

    Attributes:
        base: The corpus that it was built from.
        documents: The visible documents, by id.
        hidden: Number of rows that were taken down and whose bytes are still there.
        taken_down: Number of takedowns since the build.
        profiles: Names of the profiles that were fitted.
        generation: Number of publications.
    """

    base: int
    documents: dict[str, Document] = field(default_factory=dict)
    hidden: int = 0
    taken_down: int = 0
    profiles: list[str] = field(default_factory=list)
    generation: int = 1

    @classmethod
    def built(cls, base: int) -> Self:
        """Returns the model of an index that was just built from a corpus."""
        return cls(base, {f"doc-{number}": Document(number) for number in BASES[base]})

    @property
    def rows(self) -> int:
        """Number of rows on disk."""
        return len(self.documents) + self.hidden

    @property
    def state(self) -> State:
        return self.generation, self.taken_down

    def copy(self) -> "IndexModel":
        """Returns a copy that changes independently."""
        return copy.deepcopy(self)


def read_state(root: Path) -> State:
    """Returns the state of the index in a directory."""
    try:
        generation = read_manifest(root).generation
    except IndexNotFound:
        return None
    log = root / TAKEDOWN_LOG_FILE
    return generation, log.read_bytes().count(b"\n") if log.exists() else 0
