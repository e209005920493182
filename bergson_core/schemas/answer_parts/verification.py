"""What unlearning documents changed: each result alone, all results of a direction together, random documents."""

from collections.abc import Collection, Sequence
from typing import Self

from bergson_core.schemas.base import ResultModel


class Verified(ResultModel):
    """What one step of gradient ascent on one document alone changed. All weights were restored exactly afterwards.

    Of a group of documents, the step is on all of them at once: the sum of the steps on the single documents. A number
    is null if it is not finite, because the step has broken the model.
    """

    log_probability: float | None
    """Change of the log-probability of the completion, or of its span, in nats; with `instead_of` of the difference of
    the two log-probabilities. Negative: without what this document taught it, the model is less likely to say the
    completion, so the document supported it. Positive: the document spoke against it. A change as small as that of the
    controls is what a step on any document does."""
    probability: float | None
    """Change of the probability of the completion, or of its span; with `instead_of` of its share of the probability of
    the two."""
    own_log_probability: float | None
    """Change of the document's own log-probability, in nats: how far it was unlearned. Negative. Of a group, that of
    the sum over its documents."""


class Control(Verified):
    """A random document of the index that was unlearned in the same way."""

    id: str
    """Id of the document."""


class GroupEffect(Verified):
    """What one step of gradient ascent on several documents at once changed."""

    ids: list[str]
    """Ids of the documents."""


class Together(GroupEffect):
    """What one step on all verified results of a direction at once changed, and what to compare it with."""

    sum: Verified
    """Sums of what the single steps on these documents changed. Where the step on all of them changes the completion
    less, several documents say the same; where it changes the completion more, they support each other."""
    controls: list[GroupEffect]
    """Groups of as many random documents, each unlearned by one step."""
    mean: Verified | None
    """Mean of these groups; null without any."""

    @classmethod
    def from_groups(
        cls, results: GroupEffect, singles: Sequence[Verified], controls: Sequence[GroupEffect]
    ) -> Self:
        """Returns the effect of a group of results beside the sum of their single steps and beside random groups."""
        return cls(
            **results.model_dump(),
            sum=_combine(singles, 1),
            controls=list(controls),
            mean=_mean(controls),
        )

    def without(self, ids: Collection[str]) -> Self | None:
        """Returns this without the random groups that have one of these documents; None where a result is one."""
        if names_any(self.ids, ids):
            return None
        remaining = [group for group in self.controls if not names_any(group.ids, ids)]
        means = _mean(remaining)
        return self.model_copy(update={"controls": remaining, "mean": means})


class Verification(ResultModel):
    """How the results were verified, and what unlearning random documents does instead."""

    learning_rate: float
    """Learning rate of each step. It is the same for all documents, so one with a larger gradient moves the model
    further."""
    log_probability: float
    """Log-probability of the completion, or of its span, before any step, in nats."""
    controls: list[Control]
    """Documents that were drawn at random among those that are not results."""
    mean: Verified | None
    """Mean of the controls; null without controls."""
    together: Together | None = None
    """What one step on all verified results at once changed, if `together` asks for it."""
    opponents_together: Together | None = None
    """The same for the verified opponents."""

    @classmethod
    def from_controls(
        cls, learning_rate: float, log_probability: float, controls: Sequence[Control]
    ) -> "Verification":
        """Returns a verification with the mean of these controls. A number that any of them lacks has no mean."""
        return cls(
            learning_rate=learning_rate,
            log_probability=log_probability,
            controls=list(controls),
            mean=_mean(controls),
        )

    def without(self, ids: Collection[str]) -> "Verification":
        """Returns the verification without whatever was measured on the documents that have these ids."""
        remaining = [control for control in self.controls if not names_any([control.id], ids)]
        update = {
            "controls": remaining,
            "mean": _mean(remaining),
            "together": self.together and self.together.without(ids),
            "opponents_together": self.opponents_together and self.opponents_together.without(ids),
        }
        return self.model_copy(update=update)


def names_any(shown: Collection[str], ids: Collection[str]) -> bool:
    """Returns whether one of the documents that are shown has one of these ids, or is a chunk of one that has.

    The id of a chunk is that of its document, # and a number. A document whose own id looks like this may count too.
    """
    return any(not {shown_id, shown_id.rpartition("#")[0]}.isdisjoint(ids) for shown_id in shown)


def _mean(effects: Sequence[Verified]) -> Verified | None:
    """Returns the mean of effects; a number that any of them lacks has none. None without effects."""
    return _combine(effects, len(effects)) if effects else None


def _combine(effects: Sequence[Verified], divisor: int) -> Verified:
    """Returns the sum of effects, divided by `divisor`; a number that any of them lacks has no sum."""
    sums: dict[str, float | None] = {}
    for name in Verified.model_fields:
        values = [getattr(effect, name) for effect in effects]
        sums[name] = None if None in values else sum(values) / divisor
    return Verified(**sums)
