"""A query whose results are rescored or verified, or whose scores are summed, one step at a time."""

import time
from collections.abc import Generator, Iterable
from typing import TYPE_CHECKING, Final

from bergson_core.schemas.results import Answer
from bergson_core.schemas.totals.results import InfluenceTotals
from worker.messages import PRIORITIES, Query

if TYPE_CHECKING:
    from bergson_core.attribution.index import AttributionIndex

FollowUpResult = Answer | InfluenceTotals
"""What a query is answered with at the end."""
_RESCORING_SHARE: Final = 0.9
"""Part of the time between a query and its deadline after which rescoring stops, so that the answer is in time."""
_RESCORING_SHARE_BEFORE_VERIFICATION: Final = 0.5
"""The same for a query whose results are verified after that."""


class FollowUpTask:
    """An answer that is followed up step by step; between two steps the model has its own weights.

    Args:
        query: The query, which asks for it.
        index: The index that answered it.
        answer: The answer of the search.
    """

    def __init__(self, query: Query, index: "AttributionIndex", answer: Answer):
        self.query = query
        is_verified = query.query.verify is not None
        share = _RESCORING_SHARE_BEFORE_VERIFICATION if is_verified else _RESCORING_SHARE
        self._rescore_until = query.sent_at + share * (query.deadline - query.sent_at)
        self._ends_with_rescoring = query.query.rescore is not None and not is_verified
        self._steps = self._begin(index, answer)

    @property
    def has_to_end(self) -> bool:
        """Whether the next step ends the task, because the time to rescore candidates is over."""
        return self._ends_with_rescoring and time.time() >= self._rescore_until

    def step(self) -> FollowUpResult | None:
        """Takes the next step.

        Returns:
            The final answer if this was the last step, else None.

        Raises:
            BergsonError: Whatever `AttributionIndex.follow_up` or `total_influence` raises.
        """
        try:
            next(self._steps)
        except StopIteration as end:
            return end.value
        return None

    def _begin(self, index: "AttributionIndex", answer: Answer) -> Generator[object, None, FollowUpResult]:
        if self.query.totals is None:
            return index.follow_up(self.query.query, answer, self._rescore_until)
        # This module is imported before torch is needed.
        from bergson_core.attribution.groups.influence_totals import total_influence

        return total_influence(index, self.query.query, answer, self.query.totals)


def next_follow_up(tasks: Iterable[FollowUpTask]) -> FollowUpTask:
    """Returns the task to continue: one that has to end, or else the oldest of an interactive query, or of a batch."""
    return min(tasks, key=lambda task: (not task.has_to_end, PRIORITIES.index(task.query.priority)))
