"""A behaviour to create: its name, its queries, and those of its control set."""

import json
from collections import Counter
from collections.abc import Hashable, Iterable
from typing import Any, Final, Self

from pydantic import Field, TypeAdapter, model_validator

from bergson_core.schemas.base import Spec, field_error
from bergson_core.schemas.build import IndexName
from bergson_core.schemas.query import MAX_QUERY_CHARACTERS, AttributionQuery, Join, Objective
from bergson_core.schemas.record import Message

MAX_BEHAVIOUR_QUERIES: Final = 4096
"""Largest number of queries of a behaviour, and of its control set."""
CONTROL_IS_SET: Final = (
    "the control set is the set of queries itself, so that every score would be 0: expected other queries, or no "
    "control set"
)


class BehaviourQuery(Spec):
    """A prompt and a completion, or a chat, that shows the behaviour. The fields mean what they mean in a query."""

    prompt: str | None = Field(default=None, max_length=MAX_QUERY_CHARACTERS)
    """Text before the completion. It may be empty."""
    completion: str | None = Field(default=None, min_length=1, max_length=MAX_QUERY_CHARACTERS)
    """What the model says, usually with a space at its beginning. It is never generated."""
    instead_of: str | None = Field(default=None, min_length=1, max_length=MAX_QUERY_CHARACTERS)
    """Another completion, which the completion is contrasted with."""
    objective: Objective = "log_probability"
    """What is explained of each token: its log-probability, or its log-odds."""
    messages: tuple[Message, ...] | None = Field(default=None, min_length=1)
    """A chat instead of a prompt and a completion; its last message is the assistant's."""
    join: Join = "exact"
    """What is put between prompt and completion; `space` puts a space where one is expected."""
    span: tuple[int, int] | None = None
    """Characters [start, end) of the completion that show the behaviour; the rest of it is context."""

    def as_query(self) -> AttributionQuery:
        """Returns the query of an index that has these fields."""
        return AttributionQuery.model_validate(self.model_dump())

    @model_validator(mode="after")
    def _require_valid_query(self) -> Self:
        _QUERY_ADAPTER.validate_python(self.model_dump())
        if self.completion is None and self.messages is None:
            raise field_error(
                "completion",
                message="a query of a behaviour needs a completion: got none",
            )
        return self


_QUERY_ADAPTER: Final = TypeAdapter(AttributionQuery)
"""Raises pydantic's own error, whose locations are those of the fields of `BehaviourQuery`."""


class BehaviourSpec(Spec):
    """A behaviour: a named set of queries that show the behaviour, and a control set of similar queries without it."""

    name: IndexName
    """Name of the behaviour, which queries give as `behaviour`."""
    queries: tuple[BehaviourQuery, ...] = Field(min_length=1, max_length=MAX_BEHAVIOUR_QUERIES)
    """Completions that show the behaviour. All queries have the same weight, and a query that occurs twice counts
    twice."""
    control: tuple[BehaviourQuery, ...] | None = Field(
        default=None, min_length=1, max_length=MAX_BEHAVIOUR_QUERIES
    )
    """Queries that are like the others except for the behaviour, such as the same prompts with ordinary completions.
    The mean score of a document with the control queries is subtracted from its mean score with the queries."""

    @model_validator(mode="after")
    def _require_another_control(self) -> Self:
        if self.control and is_same_set(map(_as_text, self.queries), map(_as_text, self.control)):
            raise field_error("control", message=CONTROL_IS_SET)
        return self


def is_same_set(queries: Iterable[Hashable], control: Iterable[Hashable]) -> bool:
    """Returns whether each query has the same share of a set and of its control set.

    Args:
        queries: What distinguishes the queries of the set, such as their tokens.
        control: What distinguishes the queries of the control set.
    """
    counts, control_counts = Counter(queries), Counter(control)
    total, control_total = counts.total(), control_counts.total()
    return all(
        counts[each] * control_total == control_counts[each] * total
        for each in counts.keys() | control_counts
    )


def _as_text(query: BehaviourQuery) -> str:
    fields: dict[str, Any] = query.model_dump(exclude_defaults=True)
    return json.dumps(fields, sort_keys=True, default=str)
