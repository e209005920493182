"""What is shown of the behaviours of an index."""

from typing import Any

from bergson_core.schemas.base import ResultModel


class BehaviourSummary(ResultModel):
    """A behaviour: a named set of queries that is kept with an index."""

    name: str
    """Name of the behaviour."""
    generation: int
    """Generation of the index at which the behaviour was created. Later generations use it as well."""
    created_at: str
    """Time of the behaviour's creation, in ISO 8601 with UTC offset."""
    query_count: int
    """Number of its queries."""
    control_count: int
    """Number of queries of its control set; 0 if it has none."""
    loss: float
    """Mean over the queries of the cross-entropy of their completions, in nats: the lower, the more the model behaves
    so."""
    control_loss: float | None
    """Mean over the queries of the control set, in nats; null if there is no control set."""
    n_tokens: int
    """Number of tokens of the completions of all queries, without those of the control set."""
    size_bytes: int
    """Size on disk."""


class BehaviourDetail(BehaviourSummary):
    """A behaviour with its queries."""

    queries: list[dict[str, Any]] | None = None
    """The queries as they were given, without fields that have their default. Null for a key that sees no text."""
    control: list[dict[str, Any]] | None = None
    """The queries of the control set. Null without a control set, and for a key that sees no text."""


class BehaviourList(ResultModel):
    """The behaviours of an index, in the order of their names."""

    items: list[BehaviourSummary]
