"""What totals are asked for: how the scores are summed, and the question that the scores are for."""

from typing import Any, Final

from pydantic import Field, TypeAdapter, model_validator

from bergson_core.schemas.base import Spec
from bergson_core.schemas.build import IndexName
from bergson_core.schemas.filters import Condition
from bergson_core.schemas.query import MAX_QUERY_CHARACTERS, AttributionQuery, Join, Objective
from bergson_core.schemas.record import Message

THRESHOLD_OF_SUMS: Final = 3.0
"""Width of the threshold of scores that are summed, in units of each query's noise."""
CALLS_OF_TOTALS: Final = 10
"""As how many calls totals count, since all rows of the index are read."""
MAX_TOTALS: Final = 100
"""Largest number of groups that one question returns. The interval of each takes as much memory as a few rows."""


class TotalsSpec(Spec):
    """How the scores of all documents are summed."""

    by: str = Field(min_length=1, max_length=256)
    """Metadata column of the index. Documents with the same value form a group."""
    top: int = Field(default=20, ge=1, le=MAX_TOTALS)
    """Number of groups to return, those with the largest sums. All groups are counted."""
    threshold: float = Field(default=THRESHOLD_OF_SUMS, ge=0, le=100)
    """Scores are drawn towards their median by this many times their noise, and are 0 within that distance. Median and
    noise are those of random documents of the index. Without a threshold (0), sums over many documents are mostly
    noise."""


class TotalsQuery(TotalsSpec):
    """A question as in an attribution query, and the metadata column by which the scores are summed."""

    prompt: str | None = Field(default=None, max_length=MAX_QUERY_CHARACTERS)
    """Text before the completion. It may be empty. There is either a prompt, or `messages`, or a `behaviour`."""
    completion: str | None = Field(default=None, min_length=1, max_length=MAX_QUERY_CHARACTERS)
    """Text to explain, usually with a space at its beginning. By default the model generates it."""
    instead_of: str | None = Field(default=None, min_length=1, max_length=MAX_QUERY_CHARACTERS)
    """Another completion: which groups made the model say `completion` rather than this?"""
    objective: Objective = "log_probability"
    """What is explained of each token: its log-probability, or its log-odds."""
    messages: tuple[Message, ...] | None = Field(default=None, min_length=1)
    """A chat to explain instead of a prompt and a completion; its last message is the assistant's."""
    behaviour: IndexName | None = None
    """Name of a behaviour of the index to explain instead of a completion."""
    instead_of_behaviour: IndexName | None = None
    """Another behaviour of the index, whose scores are subtracted."""
    join: Join = "exact"
    """What is put between prompt and completion; `space` puts a space where one is expected."""
    max_new_tokens: int = Field(default=32, ge=1, le=256)
    """Most tokens to generate when `completion` is left out."""
    span: tuple[int, int] | None = None
    """Characters [start, end) of the completion, or of the last message, to explain; the rest of it is context."""
    profile: IndexName = "default"
    """Profile to score with: `default`, or one that was fitted to a task."""
    filter: dict[str, Condition] | None = Field(default=None, min_length=1, max_length=16)
    """Conditions on metadata that every document meets which counts, as in an attribution query."""
    between: tuple[int, int] | None = None
    """Checkpoints [earlier, later] of an index over several, as in an attribution query."""
    partial: bool = False
    """Sum over the intact shards of a damaged index instead of refusing; the answer then says that it is partial."""

    def spec(self) -> TotalsSpec:
        """Returns how the scores are summed, without the question."""
        return TotalsSpec(by=self.by, top=self.top, threshold=self.threshold)

    def as_query(self) -> AttributionQuery:
        """Returns the attribution query that the scores are for, which returns one document and nothing of it."""
        return AttributionQuery.model_validate(self.question())

    def question(self) -> dict[str, Any]:
        """Returns the fields of the attribution query."""
        fields = set(TotalsQuery.model_fields) - set(TotalsSpec.model_fields)
        return self.model_dump(include=fields) | {"filter": self.filter, "top_k": 1, "include": ()}

    @model_validator(mode="after")
    def _require_valid_question(self) -> "TotalsQuery":
        _QUERY_ADAPTER.validate_python(self.question())
        return self


_QUERY_ADAPTER: Final = TypeAdapter(AttributionQuery)
"""Raises pydantic's own error, whose locations are those of the fields of `TotalsQuery`."""
