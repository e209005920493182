"""A preview of unlearning to compute: documents to unlearn together, and queries to watch."""

import json
from typing import Final, Self

from pydantic import Field, TypeAdapter, model_validator

from bergson_core.schemas.base import Spec, field_error
from bergson_core.schemas.filters import Condition
from bergson_core.schemas.query import MAX_LEARNING_RATE, MAX_QUERY_CHARACTERS, AttributionQuery, Join
from bergson_core.schemas.record import Message

MAX_WATCHED_QUERIES: Final = 256
"""Largest number of queries, and of control queries, of a preview."""
MAX_LISTED_IDS: Final = 10_000
"""Largest number of ids of a preview."""
DEFAULT_MAX_DOCUMENTS: Final = 1000
"""Largest number of documents that a preview unlearns together, where the caller says nothing else."""


class WatchedQuery(Spec):
    """A prompt and a completion, or a chat, whose log-probability is watched. The fields are those of a query."""

    prompt: str | None = Field(default=None, max_length=MAX_QUERY_CHARACTERS)
    """Text before the completion. It may be empty. A query has either a prompt or `messages`."""
    completion: str | None = Field(default=None, min_length=1, max_length=MAX_QUERY_CHARACTERS)
    """What the model says, usually with a space at its beginning. It is never generated."""
    instead_of: str | None = Field(default=None, min_length=1, max_length=MAX_QUERY_CHARACTERS)
    """Another completion: the difference of the two log-probabilities is watched."""
    messages: tuple[Message, ...] | None = Field(default=None, min_length=1)
    """A chat instead of a prompt and a completion. Its last message is the assistant's."""
    join: Join = "exact"
    """What is put between prompt and completion: with `space` a space where the tokenizer expects one."""
    span: tuple[int, int] | None = None
    """Characters [start, end) of the completion, or of the last message's content, to watch; the rest is context."""

    def as_query(self) -> AttributionQuery:
        """Returns the query of an index that has these fields."""
        return AttributionQuery.model_validate(self.model_dump())

    @model_validator(mode="after")
    def _require_valid_query(self) -> Self:
        _QUERY_ADAPTER.validate_python(self.model_dump())
        if self.completion is None and self.messages is None:
            raise field_error(
                "completion",
                message="expected a completion whose log-probability is measured, or `messages`; got neither",
            )
        return self


_QUERY_ADAPTER: Final = TypeAdapter(AttributionQuery)
"""Raises pydantic's own error, whose locations are those of the fields of `WatchedQuery`."""


class UnlearnSpec(Spec):
    """Documents to unlearn together by one step of gradient ascent, and queries to watch. Nothing is saved."""

    ids: tuple[str, ...] | None = Field(default=None, min_length=1, max_length=MAX_LISTED_IDS)
    """Ids of the documents, each once. The id of a document that was cut into chunks stands for all of them. Give
    either this or `filter`."""
    filter: dict[str, Condition] | None = Field(default=None, min_length=1, max_length=16)
    """Conditions on metadata, as in a query: all documents that meet them are unlearned."""
    queries: tuple[WatchedQuery, ...] = Field(min_length=1, max_length=MAX_WATCHED_QUERIES)
    """What the model should say less often."""
    control: tuple[WatchedQuery, ...] | None = Field(
        default=None, min_length=1, max_length=MAX_WATCHED_QUERIES
    )
    """Queries that have nothing to do with the documents. They show what else would change."""
    learning_rate: float | None = Field(default=None, gt=0, le=MAX_LEARNING_RATE)
    """Learning rate of the step. The default is the rate at which unlearning the median document alone halves that
    document's probability, to first order."""

    @model_validator(mode="after")
    def _require_one_choice(self) -> Self:
        if (self.ids is None) == (self.filter is None):
            given = "neither" if self.ids is None else "both"
            raise field_error("ids", message=f"expected either `ids` or `filter`, got {given}")
        return self

    @model_validator(mode="after")
    def _require_each_id_once(self) -> Self:
        seen: set[str] = set()
        for number, document_id in enumerate(self.ids or ()):
            if document_id in seen:
                raise field_error(
                    *("ids", number),
                    message=f"expected each document once, got {document_id[:100]!r} a second time",
                )
            seen.add(document_id)
        return self

    @model_validator(mode="after")
    def _require_other_control(self) -> Self:
        watched = {_as_text(query): number for number, query in enumerate(self.queries)}
        for number, query in enumerate(self.control or ()):
            if (same := watched.get(_as_text(query))) is not None:
                raise field_error(
                    *("control", number),
                    message="expected a control query that differs from all of "
                    f"`queries`, got the same as queries.{same}",
                )
        return self


def _as_text(query: WatchedQuery) -> str:
    return json.dumps(query.model_dump(), sort_keys=True, default=str)
