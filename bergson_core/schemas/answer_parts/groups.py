"""Groups that results are folded into, with the sums of their scores."""

from collections.abc import Collection
from typing import Any, Literal, Self

from bergson_core.schemas.answer_parts.verification import names_any
from bergson_core.schemas.base import ResultModel

Strength = Literal["strong", "weak", "none"]
"""How strong an influence is, from its place among random rows and from the noise of its score."""


class GroupMember(ResultModel):
    """A document of a group."""

    id: str
    """Id of the document."""
    score: float
    """Influence of the document."""


class ResultGroup(ResultModel):
    """The documents that a result stands for, which is the best of these."""

    value: Any = None
    """Value that the documents have in the column of `group_by`; null for documents that have none, and for
    near-duplicates."""
    score: float
    """Sum of the scores of the members. Groups are in the order of these sums."""
    interval: tuple[float, float] | None = None
    """[low, high]: where the sum of the scores of these members lies on average over all random projections, in nine of
    ten cases, given how the group and its members were chosen. Null where the rows of the index do not show their
    noise, and after a member was taken down."""
    strength: Strength | None = None
    """How strong the mean of the members' scores is: what the `strength` of a result with this score and a part of the
    interval in proportion would be. Null where results have none, and after a member was taken down."""
    count: int
    """Number of members."""
    members: list[GroupMember]
    """The documents of the group among the 1,000 best of the direction, the best first."""

    @classmethod
    def of(cls, value: Any, members: list[GroupMember]) -> Self:
        """Returns the group of these members."""
        total = sum(member.score for member in members)
        return cls(value=value, score=total, count=len(members), members=members)

    def without_value(self) -> Self:
        """Returns the group without the value, which is metadata of the documents."""
        return self.model_copy(update={"value": None})

    def without(self, ids: Collection[str]) -> Self:
        """Returns the group without the documents that have these ids."""
        if not any(names_any([member.id], ids) for member in self.members):
            return self
        return self.of(self.value, [member for member in self.members if not names_any([member.id], ids)])
