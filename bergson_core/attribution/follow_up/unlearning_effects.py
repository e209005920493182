"""What one step on some documents at once changes."""

import math
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float64

from bergson_core.attribution.follow_up.answer_steps import Steps
from bergson_core.attribution.unlearning import Unlearner
from bergson_core.schemas.answer_parts.verification import Verified
from bergson_core.tokens.tokenization import Tokens


def unlearn(unlearner: Unlearner, query: Sequence[Tokens], documents: Sequence[Tokens]) -> Steps[Verified]:
    """Returns what one step on these documents at once changes, and yields after each pass through the model.

    Args:
        unlearner: Takes the step.
        query: Tokens of the query (`TokenizedQuery.weighted_tokens`).
        documents: Tokens of the documents.
    """
    step = yield from unlearner.step_in_steps(documents)
    before, after = yield from unlearner.log_probabilities_in_steps(step, [*query, *documents])
    texts = len(query)
    return Verified(
        log_probability=finite_or_none(difference(after[:texts]) - difference(before[:texts])),
        probability=finite_or_none(share(after[:texts]) - share(before[:texts])),
        own_log_probability=finite_or_none((after - before)[texts:].sum()),
    )


def difference(log_probabilities: Float64[np.ndarray, " _"]) -> float:
    """Returns the log-probability of a text, or that of the first of two texts less that of the second."""
    return float(log_probabilities[0] if len(log_probabilities) == 1 else -np.diff(log_probabilities)[0])


def share(log_probabilities: Float64[np.ndarray, " _"]) -> float:
    """Returns the probability of a text, or the first one's share of the probability of two."""
    if len(log_probabilities) == 1:
        return np.exp(log_probabilities[0])
    return 1 / (1 + np.exp(log_probabilities[1] - log_probabilities[0]))


def finite_or_none(value: float) -> float | None:
    """Returns a number, or None where it is not finite."""
    return float(value) if math.isfinite(value) else None
