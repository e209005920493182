"""Says whether a contrast is with a text that the model almost never says."""

from typing import Final

from bergson_core.attribution.queries.query_tokenizer import TokenizedQuery
from bergson_core.schemas.results import QueryEcho, QueryWarning

UNLIKELY_LOG_PROBABILITY: Final = -12.0
"""Mean log-probability of a token, in nats, below which a text counts as one that the model almost never says.

`python -m benchmarks.improbable_contrasts` measures it: with texts below it, contrasts often miss the documents that
state the fact.
"""


def unlikely_warnings(query: TokenizedQuery, echo: QueryEcho) -> list[QueryWarning]:
    """Returns a warning if the model almost never says one of the two texts of a contrast.

    Args:
        query: The query; one without `instead_of` has no warning.
        echo: What its answer says of it, with the losses of both texts.
    """
    if query.alternative is None or echo.instead_of_loss is None:
        return []
    means = {
        "the completion": -echo.loss / query.tokens.n_labelled,
        "instead_of": -echo.instead_of_loss / query.alternative.tokens.n_labelled,
    }
    if min(means.values()) >= UNLIKELY_LOG_PROBABILITY:
        return []
    unlikely = [name for name, mean in means.items() if mean < UNLIKELY_LOG_PROBABILITY]
    shown = " and ".join(f"{mean:.2f} for {name}" for name, mean in means.items())
    return [
        QueryWarning(
            code="unlikely_contrast",
            detail=f"the model almost never says {' and '.join(unlikely)}: the mean log-probability of a token is "
            f"{shown}, in nats. The gradient of such a text outweighs the other one, and the results are often noise: "
            f"contrast texts with means above {UNLIKELY_LOG_PROBABILITY:g}, or leave out instead_of",
        )
    ]
