"""What a preview of unlearning has found."""

from collections.abc import Sequence

from bergson_core.schemas.base import ResultModel


class QueryChange(ResultModel):
    """How the log-probability of a query changes when the documents are unlearned.

    A number is null if it is not finite, because the step has broken the model.
    """

    before: float | None
    """Log-probability of the completion, or of its span, before the step, in nats; with `instead_of` the difference of
    the two log-probabilities."""
    after: float | None
    """The same after the step."""
    log_probability: float | None
    """Change of the log-probability, in nats: `after` less `before`. Negative: the model says it less often."""
    probability: float | None
    """Change of the probability; with `instead_of` of the completion's share of the probability of the two."""


class UnlearnPreview(ResultModel):
    """What one step of gradient ascent on several documents at once would change. All weights were restored exactly."""

    generation: int
    """Generation of the index."""
    documents: int
    """Number of documents that were unlearned together; chunks count one by one."""
    left_out: int
    """Number of chosen documents that have no gradient to unlearn them by: without tokens to learn, of weight 0, or of
    a gradient that is not finite."""
    learning_rate: float
    """Learning rate of the step, which is the sum of the steps on the single documents."""
    own_log_probability: float | None
    """Change of the sum of the documents' own log-probabilities, in nats: how far they were unlearned."""
    queries: list[QueryChange]
    """The change of each query, in the order of the request."""
    control: list[QueryChange]
    """The change of each control query."""
    mean: float | None
    """Mean change of the log-probability of the queries, in nats."""
    control_mean: float | None
    """Mean change of the log-probability of the control queries, in nats; null without any."""


def mean_change(changes: Sequence[QueryChange]) -> float | None:
    """Returns the mean change of the log-probability; None without queries, and where one of the changes is null."""
    values = [change.log_probability for change in changes]
    finite = [value for value in values if value is not None]
    return sum(finite) / len(finite) if finite and len(finite) == len(values) else None
