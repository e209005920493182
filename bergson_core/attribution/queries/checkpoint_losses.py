"""Says whether the model learned a completion between two checkpoints, as a query with `between` assumes."""

from bergson_core.models.forward_backward import compute_document_losses
from bergson_core.models.language_model import LanguageModel
from bergson_core.schemas.build_parts.checkpoints import require_between
from bergson_core.schemas.query import AttributionQuery
from bergson_core.schemas.results import QueryWarning
from bergson_core.tokens.tokenization import Tokens


def losses_between(
    model: LanguageModel, query: AttributionQuery, tokens: Tokens
) -> tuple[float, float] | None:
    """Returns the losses of a completion at the checkpoints of a query's `between`, or None where it has none.

    Args:
        model: The model with its `checkpoints`.
        query: The query.
        tokens: The tokens of prompt and completion.

    Returns:
        The sums of the cross-entropies of the labelled tokens at the earlier and at the later checkpoint, in nats.
    """
    if query.between is None or model.checkpoints is None:
        return None
    steps = require_between(query.between, len(model.checkpoints))
    with model.checkpoints.in_turn((steps.start, steps.stop)) as numbers:
        earlier, later = (float(compute_document_losses(model, [tokens])[0]) for _ in numbers)
    return earlier, later


def not_learned_warnings(losses: tuple[float, float] | None) -> list[QueryWarning]:
    """Returns a warning if the later checkpoint does not make the completion more likely than the earlier one."""
    if losses is None or losses[1] < losses[0]:
        return []
    earlier, later = losses
    return [
        QueryWarning(
            code="not_learned",
            detail=f"the later checkpoint does not make the completion more likely than the earlier one: its loss is "
            f"{later:.3f} nats there, and {earlier:.3f} at the earlier one",
        )
    ]
