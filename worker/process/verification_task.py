"""An answer on its way through a verification. No torch here."""

from collections.abc import Generator, Iterable
from typing import TYPE_CHECKING

from bergson_core.schemas.results import Answer
from worker.messages import PRIORITIES, Query

if TYPE_CHECKING:
    from bergson_core.attribution.index import AttributionIndex


class VerificationTask:
    """An answer whose results are being unlearned, some at each step; between two steps the model is as it was."""

    def __init__(self, query: Query, index: "AttributionIndex", answer: Answer):
        self.query = query
        self._begin = lambda: index.verify(query.query, answer)
        self._steps: Generator[None, None, Answer] | None = None

    def step(self) -> Answer | None:
        """Goes on; the whole answer where that was the last step. Raises what `AttributionIndex.verify` does."""
        self._steps = self._steps or self._begin()
        try:
            next(self._steps)
        except StopIteration as end:
            return end.value
        return None


def next_verification(verifications: Iterable[VerificationTask]) -> VerificationTask:
    """The one that is gone on with: the oldest of a single question, or else of those of batches."""
    return min(verifications, key=lambda one: PRIORITIES.index(one.query.priority))
