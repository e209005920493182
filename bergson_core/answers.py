"""What comes back: progress of a build, and the answer to a query. No torch here.

These classes are what the library returns, what crosses Redis, and what HTTP shows.
"""

from collections.abc import Collection
from typing import Any

from pydantic import BaseModel, ConfigDict


class Report(BaseModel):
    """Base: immutable, unknown fields refused, and a field's docstring is its description."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", use_attribute_docstrings=True, protected_namespaces=()
    )


class Progress(Report):
    """How far a build is. Each stage counts from 0 again."""

    stage: str = "queued"
    """What is being done: queued, load, read, statistics, gradients, search, done."""
    done: int = 0
    total: int = 0
    unit: str = "documents"
    tokens_per_s: float | None = None
    eta_s: float | None = None
    """Seconds until this stage ends, at its rate so far."""


class ResultRow(Report):
    """A training sample and its influence on what the model said."""

    rank: int
    id: str
    score: float
    prompt: str | None = None
    completion: str | None = None
    metadata: dict[str, Any] | None = None
    loss: float | None
    """Sum of the sample's token cross-entropies under the indexed model, in nats; null where its gradient was not
    finite, so that it was skipped."""


class QueryEcho(Report):
    """The query as it was understood."""

    prompt: str
    completion: str
    generated: bool = False
    loss: float
    """Sum of the completion's token cross-entropies, in nats."""
    n_tokens: int
    """Tokens of the completion."""


class TimingMs(Report):
    """Milliseconds: waiting for a worker and for it to load the index, then gradient and search of the micro-batch."""

    queue: float = 0.0
    gradient: float
    search: float
    total: float


class Answer(Report):
    """The training samples behind one completion; `results` is null where only opponents were asked for."""

    index: str
    generation: int
    profile: str = "default"
    query: QueryEcho
    results: list[ResultRow] | None = None
    opponents: list[ResultRow] | None = None
    partial: bool = False
    """Damaged shards of the index were left out."""
    timing_ms: TimingMs

    def without(self, ids: Collection[str]) -> "Answer":
        """The answer without the rows of these ids."""

        def kept(rows: list[ResultRow] | None) -> list[ResultRow] | None:
            left = [row for row in rows or () if row.id not in ids]
            ranked = [row.model_copy(update={"rank": rank}) for rank, row in enumerate(left, start=1)]
            return None if rows is None else ranked

        if not ids:
            return self
        return self.model_copy(update={"results": kept(self.results), "opponents": kept(self.opponents)})
