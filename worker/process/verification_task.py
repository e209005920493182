"""A query whose results are being verified, one step at a time."""

from collections.abc import Generator, Iterable
from typing import TYPE_CHECKING

from bergson_core.schemas.results import Answer
from worker.messages import PRIORITIES, Query

if TYPE_CHECKING:
    from bergson_core.attribution.index import AttributionIndex


class VerificationTask:
    """An answer whose results are unlearned step by step; between two steps the model has its original weights.

    Args:
        query: The query, which asks for a verification.
        index: The index that answered it.
        answer: The answer without a verification.
    """

    def __init__(self, query: Query, index: "AttributionIndex", answer: Answer):
        self.query = query
        self._begin = lambda: index.verify(query.query, answer)
        self._steps: Generator[None, None, Answer] | None = None

    def step(self) -> Answer | None:
        """Takes the next step.

        Returns:
            The answer with its verification if this was the last step, else None.

        Raises:
            BergsonError: Whatever `AttributionIndex.verify` raises.
        """
        self._steps = self._steps or self._begin()
        try:
            next(self._steps)
        except StopIteration as end:
            return end.value
        return None


def next_verification(tasks: Iterable[VerificationTask]) -> VerificationTask:
    """Returns the task to continue: the oldest one of an interactive query, or else of a batch query."""
    return min(tasks, key=lambda task: PRIORITIES.index(task.query.priority))
