"""`IndexOnDisk`: an index that the library changes, and what it has to be."""

from dataclasses import dataclass, field
from pathlib import Path

from bergson_core import AttributionIndex
from tests.faults.state_machine.changes import Change, Delete, TakeDown
from tests.faults.state_machine.index_model import IndexModel


@dataclass
class IndexOnDisk:
    """An index of the machine.

    Attributes:
        root: Its directory.
        model: What it has to be; None where nothing is published.
        history: The changes since the directory was empty.
        unfinished: The corpus of a build that was stopped.
        has_leftovers: Whether a job died or was stopped, and nobody has finished it since.
        reader: An index that was opened some time ago, and what it has to show.
    """

    root: Path
    model: IndexModel | None = None
    history: list[Change] = field(default_factory=list)
    unfinished: int | None = None
    has_leftovers: bool = False
    reader: tuple[AttributionIndex, IndexModel] | None = None

    @property
    def key(self) -> str:
        """The id of the next job."""
        return f"job-{len(self.history)}"

    def record(self, change: Change) -> None:
        """Notes that a change was made."""
        self.model = change.update(self.model)
        self.unfinished = None
        self.history.append(change)
        if isinstance(change, Delete):
            self.history.clear()
            self.reader = None
        elif isinstance(change, TakeDown) and self.reader and change.id in self.reader[1].documents:
            del self.reader[1].documents[change.id]
