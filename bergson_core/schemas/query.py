"""TODO"""

from typing import Literal, Self

from pydantic import Field, model_validator

from bergson_core.schemas.base import Spec
from bergson_core.schemas.build import MAX_INLINE_DOCUMENTS, DatasetSpec, IndexName
from bergson_core.schemas.filters import Condition

MAX_TOP_K_WITH_TOKENS = 32


MAX_VERIFIED = 32


Direction = Literal["proponents", "opponents", "both"]


IncludedPart = Literal["text", "metadata", "tokens", "modules"]


Aggregate = Literal["mean", "max", "each"]


class TaskQuery(Spec):
    """A prompt and what was said to it: one of the queries that are typical of a task."""

    prompt: str = Field(max_length=1_000_000)
    completion: str = Field(min_length=1, max_length=1_000_000)


class ProfileSpec(Spec):
    """A way to compare rows for a task: the preconditioner mixed with the second moment of the task's queries."""

    name: IndexName
    """What `profile` of a query then says."""
    queries: tuple[TaskQuery, ...] | None = Field(default=None, min_length=1, max_length=MAX_INLINE_DOCUMENTS)
    """A sample of the task's queries; give this or `dataset`."""
    dataset: DatasetSpec | None = None
    """Where to read the queries, from the columns `prompt` and `completion`."""
    mixing: float | None = Field(default=None, ge=0, le=1)
    """Share of the queries in the second moment; by default found by matching eigenvalues (TrackStar, section 3)."""

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        if (self.dataset is None) == (self.queries is None):
            raise ValueError("expected exactly one of `queries` and `dataset`")
        return self


class VerifySpec(Spec):
    """Which documents are unlearned for real, each by one step of gradient ascent on it alone."""

    top: int = Field(default=3, ge=1, le=MAX_VERIFIED)
    """The best so many of the rows that are returned, of each direction."""
    controls: int = Field(default=3, ge=0, le=MAX_VERIFIED)
    """Random documents of the index beside them, which say what a step on just any document does. The same question
    draws the same ones."""
    learning_rate: float | None = Field(default=None, gt=0)
    """Of the step. By default that at which, to first order, unlearning the median document halves its probability."""


class AttributionQuery(Spec):
    """A prompt and what the model said; which training samples made it say that?"""

    index: IndexName
    prompt: str = Field(max_length=1_000_000)
    """What came before. May be empty."""
    completion: str | None = Field(default=None, min_length=1, max_length=1_000_000)
    """What is to be explained; the query's loss is over its tokens only. Left out, it is what the model says by itself,
    token by token the most likely."""
    max_new_tokens: int = Field(default=32, ge=1, le=256)
    """Tokens that are generated at most where `completion` is left out."""
    span: tuple[int, int] | None = None
    """Characters [start, end) of the completion to attribute; the rest of it is context."""
    top_k: int = Field(default=10, ge=1, le=1000)
    """Number of rows to return."""
    direction: Direction = "proponents"
    """Samples that made the completion more likely, less likely, or a list of each."""
    include: tuple[IncludedPart, ...] = ("text", "metadata")
    """What comes with each row beside id, score, percentile and loss: `tokens` and `modules` are the parts of its score
    by token and by module. For `tokens` the rows run through the model again: at most 32 of each direction."""
    profile: IndexName = "default"
    """Preconditioner to score with: `default`, or one that was fitted for a task."""
    partial: bool = False
    """Where shards of the index are damaged, search the others instead of refusing; the answer says so."""
    filter: dict[str, Condition] | None = Field(default=None, min_length=1, max_length=16)
    """Conditions on metadata, all of which a row has to meet: a value, a list of values, or a range such as
    `{"gte": 1990, "lt": 2000}`, for each column named."""
    verify: VerifySpec | None = None
    """Unlearn the best results for real, one by one, and say how much less likely that makes the completion. Each takes
    some passes through the model, and the first such query of an index some hundred more."""

    @property
    def unlearned(self) -> int:
        """Documents that are unlearned for it at most."""
        if self.verify is None:
            return 0
        return self.verify.top * (1 + (self.direction == "both")) + self.verify.controls

    @model_validator(mode="after")
    def _few_with_tokens(self) -> Self:
        if "tokens" in self.include and self.top_k > MAX_TOP_K_WITH_TOKENS:
            raise ValueError(
                "the tokens of a row cost a pass through the model: expected a top_k of at most "
                f"{MAX_TOP_K_WITH_TOKENS} with them, got {self.top_k}; lower it, or leave tokens out of include"
            )
        return self

    @model_validator(mode="after")
    def _span_lies_within(self) -> Self:
        if self.span is not None:
            if self.completion is None:
                raise ValueError("span counts characters of the completion: expected one")
            (start, end), length = self.span, len(self.completion)
            if not 0 <= start < end <= length:
                raise ValueError(
                    f"span: expected 0 ≤ start < end ≤ {length}, the characters of the completion; got [{start}, {end}]"
                )
        return self
