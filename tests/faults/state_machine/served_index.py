"""`ServedIndex`: an index that the service changes, and what it may be while a job is at work."""

from dataclasses import dataclass, field

from tests.faults.state_machine.changes import Change, Compact, Delete, TakeDown
from tests.faults.state_machine.index_model import IndexModel
from worker.messages import JobRecord


@dataclass
class ServedIndex:
    """An index of the service.

    Attributes:
        name: Its name.
        history: The changes that were made since there was none of this name, with the ids of their jobs.
        pending: The job that is at work, and its change.
        takedowns_meanwhile: Number of takedowns since that job was submitted.
    """

    name: str
    history: list[tuple[Change, str]] = field(default_factory=list)
    pending: tuple[Change, JobRecord] | None = None
    takedowns_meanwhile: int = 0

    @property
    def model(self) -> IndexModel | None:
        """What the index is without the job that is at work."""
        model = None
        for change, _ in self.history:
            model = change.update(model)
        return model

    @property
    def models(self) -> list[IndexModel | None]:
        """What the index may be: without the job that is at work, or with what it does."""
        return [self.model, self.pending[0].update(self.model)] if self.pending else [self.model]

    def record(self, change: Change, job_id: str = "") -> None:
        """Notes that a change was made."""
        if isinstance(change, Delete):
            self.history.clear()
        else:
            self.history.append((change, job_id))
            self.takedowns_meanwhile += isinstance(change, TakeDown)

    def record_compaction(self, job_id: str, compacted: int, generation: int) -> None:
        """Notes that a compaction was made, after which `compacted` of the takedowns have no bytes any more."""
        model = self.model
        assert model is not None
        has_changed = generation > model.generation
        later = model.taken_down - compacted if has_changed else self.takedowns_meanwhile
        assert 0 <= later <= self.takedowns_meanwhile
        self.history.insert(len(self.history) - later, (Compact(), job_id))
