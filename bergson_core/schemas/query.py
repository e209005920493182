"""What an index is asked: attribution queries, the verification of their results, and profiles fitted to a task."""

import json
import math
from typing import Any, Final, Literal, Self

from pydantic import Field, model_validator

from bergson_core.schemas.base import Spec, field_error
from bergson_core.schemas.build import IndexName
from bergson_core.schemas.filters import Condition
from bergson_core.schemas.record import Message
from bergson_core.schemas.source import MAX_INLINE_DOCUMENTS, DatasetSpec
from bergson_core.schemas.validation.bounded_errors import short_repr

MAX_TOP_K_WITH_TOKENS = 32
"""Largest `top_k` of a query that asks for the scores of tokens: each result costs a pass through the model."""
MAX_QUERY_CHARACTERS = 1_000_000
"""Largest number of characters of a prompt, of a completion, and of the messages of a chat as JSON text."""
MAX_VERIFIED = 32
"""Largest number of results in each direction, and of control documents, that one query unlearns."""
MAX_LEARNING_RATE = 1e38
"""Largest learning rate of a step, which float32 can hold."""
MAX_RESCORED = 1000
"""Largest number of candidates in each direction that one query scores by their whole gradients."""
FUSION_DEPTH = 100
"""Documents of each order that are fused at least, so that the first results do not depend on `top_k`."""
_RESCORED_PER_CALL = 32
"""Candidates to rescore that count as one call: documents run through the model in batches."""

GROUP_DEPTH = 1000
"""How many of the best documents of a direction are folded into groups."""
NEAR_DUPLICATES: Final = "near_duplicates"
"""Value of `group_by` that folds documents whose rows are nearly the same."""

Direction = Literal["proponents", "opponents", "both"]
IncludedPart = Literal["text", "metadata", "tokens", "modules", "words", "background"]
Join = Literal["exact", "space"]
Order = Literal["influence", "words", "fused"]
Objective = Literal["log_probability", "log_odds"]
Aggregate = Literal["mean", "max", "each"]
"""How the scores of several queries become one score of a document: their mean, their maximum, or not at all."""


class VerifySpec(Spec):
    """Which documents are unlearned to verify results, each by one step of gradient ascent on that document alone."""

    top: int = Field(default=3, ge=1, le=MAX_VERIFIED)
    """Number of results to unlearn in each direction, the best first."""
    controls: int = Field(default=3, ge=0, le=MAX_VERIFIED)
    """Number of random documents to unlearn beside them, which show what a step on an arbitrary document does. The same
    query always draws the same ones."""
    learning_rate: float | None = Field(default=None, gt=0, le=MAX_LEARNING_RATE)
    """Learning rate of the step. The default is the rate at which unlearning the median document halves that document's
    probability, to first order."""
    together: bool = False
    """Whether one more step is taken on all verified results of a direction at once, and one on each of as many random
    groups of the same size as there are `controls`. The answer shows them beside the sum of the single steps."""

    def max_documents(self, directions: int) -> int:
        """Returns how many documents are unlearned at most, controls and those of groups included.

        Args:
            directions: In how many directions the query has results.
        """
        groups = directions * self.top * (1 + self.controls) if self.together else 0
        return directions * self.top + self.controls + groups


_NOT_OF_BEHAVIOURS: Final = {
    "prompt": "the behaviour has its own queries",
    "completion": "the behaviour has its own queries",
    "messages": "the behaviour has its own queries",
    "instead_of": "a behaviour is contrasted with another one by instead_of_behaviour",
    "between": "a behaviour is kept over all checkpoints",
    "span": "the spans of a behaviour's completions are part of its queries",
    "objective": "the objectives of a behaviour are part of its queries",
    "join": "how prompts and completions are joined is part of a behaviour's queries",
    "max_new_tokens": "nothing is generated for a behaviour",
    "order": "a behaviour has no words that documents could be compared with",
    "rescore": "a behaviour is kept as rows of the index, which have no whole gradients to rescore by",
    "verify": "a behaviour is no single text whose log-probability unlearning could change; verify one of its queries",
}
"""Fields that a query for a behaviour cannot have, and why."""


class AttributionQuery(Spec):
    """A prompt and the model's completion of it, or a chat: which training documents made the model say this?"""

    index: IndexName | None = None
    """Name of the index, for a service; an open index needs none."""
    prompt: str | None = Field(default=None, max_length=MAX_QUERY_CHARACTERS)
    """Text before the completion. It may be empty. A query has either a prompt, or `messages`, or a `behaviour`."""
    completion: str | None = Field(default=None, min_length=1, max_length=MAX_QUERY_CHARACTERS)
    """Text to explain. The query's loss is that of its tokens, without an EOS after them. If the completion is left
    out, the model generates one with the most likely token at each step. A completion usually begins with a space: see
    `join`."""
    instead_of: str | None = Field(default=None, min_length=1, max_length=MAX_QUERY_CHARACTERS)
    """Another completion of the same prompt: why does the model say `completion` rather than this one? The gradient is
    that of log p(completion) - log p(instead_of). Proponents made the completion more likely relative to this one,
    opponents made this one more likely. With `span`, it replaces the span, and the text after the span is left out. In
    a chat, it replaces the content of the last message, or the span of it."""
    objective: Objective = "log_probability"
    """What is explained for each token: its log-probability, or its log-odds log p / (1 - p). The log-probability of a
    token that the model is sure of has almost no gradient. With log-odds, such a token counts as much as others."""
    between: tuple[int, int] | None = None
    """Two checkpoints [earlier, later] of an index over several checkpoints, counted from 0; -1 is the last. The query
    then asks why the later model says the completion and the earlier one does not. A score is the mean over the
    checkpoints from the earlier one up to, but not including, the later one."""
    messages: tuple[Message, ...] | None = Field(default=None, min_length=1)
    """A chat to explain instead of a prompt and a completion: messages with role and content. The last message is the
    assistant's. The chat is rendered as the chats of the index were, and its loss is that of all messages of the
    assistant."""
    behaviour: IndexName | None = None
    """Name of a behaviour of the index to explain instead of a completion. The score of a document is the mean of its
    scores with the behaviour's queries, minus the mean of its scores with the control set. It works with `profile`,
    `filter`, `direction`, `include`, `group_by` and `partial`."""
    instead_of_behaviour: IndexName | None = None
    """Another behaviour of the index, whose scores are subtracted: which documents made the model show the first
    behaviour rather than this one?"""
    join: Join = "exact"
    """How prompt and completion are joined. `exact` adds nothing; if the completion seems to lack a space, the answer's
    `warnings` say so. `space` adds a space if neither of them has one and the tokenizer expects a space before a
    word."""
    max_new_tokens: int = Field(default=32, ge=1, le=256)
    """Most tokens to generate when `completion` is left out."""
    span: tuple[int, int] | None = None
    """Characters [start, end) of the completion to explain; the rest of the completion is context. In a chat, these are
    characters of the last message's content, and the other messages are context too."""
    top_k: int = Field(default=10, ge=1, le=1000)
    """Number of results to return in each direction."""
    direction: Direction = "proponents"
    """`proponents` made the completion more likely, `opponents` made it less likely; `both` returns a list of each."""
    include: tuple[IncludedPart, ...] = ("text", "metadata")
    """What each result has in addition to id, score, percentile and loss. `tokens` and `modules` split the score by
    token and by module. `tokens` runs the results through the model again, and allows at most 32 of them in each
    direction. `words` says whether each result states the completion, and gives its rank by BM25; the first query with
    `words` reads the words of all documents. `background` adds a histogram of the scores of random documents to the
    answer."""
    order: Order = "influence"
    """The order of the results: `influence` on the completion; `words`, the BM25 score of all documents for prompt and
    completion; or `fused`, the sum of the reciprocal ranks in both orders. `score` is the influence in every order.
    With `words` and `fused`, each result has its `words`."""
    group_by: str | None = Field(default=None, min_length=1, max_length=256)
    """Which documents are returned as one result. `document`: the chunks of a long document, by the best chunk.
    `near_duplicates`: documents whose rows have a cosine of 0.95 or more. Any other value is the name of a metadata
    column: documents with the same value. In the last two cases, the groups are made of the 1,000 best documents of
    each direction, and `top_k` counts groups. Each result is the best document of its group, and `group` has the sum of
    the scores and the members."""
    profile: IndexName = "default"
    """Profile to score with: `default`, or one that was fitted to a task."""
    partial: bool = False
    """Search the intact shards of a damaged index instead of refusing the query; the answer then says that it is
    partial."""
    filter: dict[str, Condition] | None = Field(default=None, min_length=1, max_length=16)
    """Conditions on metadata that every result meets. For each column: a value such as `"wiki"`, a list of values of
    which one has to match, or comparisons such as `{"gte": 1990, "ne": 1995}`, with gte, gt, lte, lt, ne, not_in and
    exists. Values have to be of the column's type. `ne` and `not_in` are also met by documents without a value, unless
    `exists` is true."""
    rescore: int | None = Field(default=None, ge=1, le=MAX_RESCORED)
    """Number of candidates in each direction that run through the model again and are scored by their whole gradients,
    which are normalized, but not projected or preconditioned. The candidates are the best by the scores of the index.
    They come first, in the order of their exact scores, and have `exact: true`. Every few candidates take a pass
    through the model. Rescoring ends in time for `timeout_s`. It needs the default profile."""
    verify: VerifySpec | None = None
    """Unlearn the best results one by one, and report how much less likely the completion becomes. Each step takes a
    few passes through the model. The first such query of an index takes about a hundred more passes."""

    @property
    def max_unlearned_documents(self) -> int:
        """Largest number of documents that are unlearned to answer this query, controls included."""
        if self.verify is None:
            return 0
        return self.verify.max_documents(1 + (self.direction == "both"))

    @property
    def extra_calls(self) -> int:
        """As how many calls beyond itself this query counts: one for each document to unlearn and 32 to rescore."""
        rescored = (self.rescore or 0) * (1 + (self.direction == "both"))
        return self.max_unlearned_documents + math.ceil(rescored / _RESCORED_PER_CALL)

    @property
    def folds(self) -> bool:
        """Whether results are folded into groups after the search; chunks of a document are grouped by the search."""
        return self.group_by not in (None, "document")

    @property
    def groups_by_column(self) -> bool:
        """Whether results are folded by a metadata column."""
        return self.folds and self.group_by != NEAR_DUPLICATES

    @property
    def has_follow_up(self) -> bool:
        """Whether something is done to the results of the search: they are rescored, verified or compared by words."""
        return self.rescore is not None or self.verify is not None or self.compares_words or self.folds

    @property
    def compares_words(self) -> bool:
        """Whether the words of the documents are needed."""
        return self.order != "influence" or "words" in self.include

    @property
    def search_depth(self) -> int:
        """How many of the best documents by influence, and by words, the results are chosen from."""
        return max(self.top_k, FUSION_DEPTH) if self.order == "fused" else self.top_k

    def for_search(self) -> Self:
        """Returns the query that a search answers: it finds all candidates to rescore, and has no follow-up."""
        update: dict[str, Any] = {"rescore": None, "verify": None}
        if self.rescore is not None:
            # The scores of the candidates are split by token when they are scored again.
            parts = tuple(part for part in self.include if part != "tokens")
            update |= {"top_k": max(self.top_k, self.rescore), "include": parts}
        if self.order != "influence":
            # The results are scored once more when it is known which they are.
            parts = tuple(part for part in self.include if part == "background")
            update |= {"order": "influence", "top_k": self.search_depth, "include": parts}
        if self.folds:
            update |= {"group_by": None, "top_k": GROUP_DEPTH}
        return self.model_copy(update=update)

    @property
    def explained_text(self) -> str | None:
        """The completion, or what the assistant says last in a chat; None where it is generated, or is no text."""
        if self.messages is None:
            return self.completion
        content = self.messages[-1].get("content")
        return content if isinstance(content, str) else None

    def alternative(self) -> Self | None:
        """Returns the query for what `instead_of` says, or None where there is no such thing."""
        if self.instead_of is None:
            return None
        text, span = self.instead_of, None
        if self.span is not None and self.explained_text is not None:
            start, _ = self.span
            text, span = self.explained_text[:start] + text, (start, start + len(text))
        update: dict[str, Any] = {"instead_of": None, "span": span}
        if self.messages is None:
            update["completion"] = text
        else:
            update["messages"] = (*self.messages[:-1], {**self.messages[-1], "content": text})
        return self.model_copy(update=update)

    @model_validator(mode="after")
    def _require_default_profile_to_rescore(self) -> Self:
        if self.rescore is not None and self.profile != "default":
            raise field_error(
                "rescore",
                message="a profile is a preconditioner of projected gradients, and candidates are rescored by their "
                f"whole gradients, which have none: expected the profile 'default', got {self.profile!r}; "
                "leave out rescore or profile",
            )
        return self

    @model_validator(mode="after")
    def _require_order_that_fits(self) -> Self:
        if self.order == "words" and self.direction != "proponents":
            raise field_error(
                "direction",
                message="the order of words has no direction: expected 'proponents' with order 'words', got "
                f"{self.direction!r}; order 'fused' takes all directions",
            )
        if self.order != "influence" and self.rescore is not None:
            raise field_error(
                "rescore",
                message="rescored results are in the order of their exact scores: expected no `rescore` with order "
                f"{self.order!r}; leave out rescore or order",
            )
        return self

    @model_validator(mode="after")
    def _require_what_groups_go_with(self) -> Self:
        if not self.folds:
            return self
        given = {
            "include": "tokens" in self.include,
            "rescore": self.rescore is not None,
            "order": self.order != "influence",
        }
        if wrong := [name for name, is_given in given.items() if is_given]:
            what = "tokens in include" if wrong[0] == "include" else wrong[0]
            raise field_error(
                wrong[0],
                message=f"groups are sums of the scores of the index: expected no {what} with group_by "
                f"{short_repr(self.group_by)}; leave out one of the two",
            )
        return self

    @model_validator(mode="after")
    def _require_few_results_with_tokens(self) -> Self:
        if "tokens" in self.include and self.top_k > MAX_TOP_K_WITH_TOKENS:
            raise field_error(
                "top_k",
                message="scores of tokens need a pass through the model for each result: expected a top_k of at most "
                f"{MAX_TOP_K_WITH_TOKENS} with them, got {self.top_k}; lower it, or leave tokens out of include",
            )
        return self

    @model_validator(mode="after")
    def _require_behaviour_alone(self) -> Self:
        if self.behaviour is None:
            if self.instead_of_behaviour is not None:
                raise field_error(
                    "instead_of_behaviour",
                    message="it is subtracted from a behaviour: expected also `behaviour`, got none",
                )
            return self
        for name, reason in _NOT_OF_BEHAVIOURS.items():
            if getattr(self, name) != AttributionQuery.model_fields[name].default:
                raise field_error(name, message=f"{reason}: leave out {name} or behaviour")
        if "words" in self.include:
            raise field_error(
                "include",
                message="a behaviour has no words that documents could be compared with: leave out words",
            )
        if self.instead_of_behaviour == self.behaviour:
            raise field_error(
                "instead_of_behaviour",
                message="expected another behaviour, got the same, so that every score would be 0",
            )
        return self

    @model_validator(mode="after")
    def _require_prompt_or_chat(self) -> Self:
        if self.behaviour is not None:
            return self
        if self.messages is None:
            if self.prompt is None:
                raise field_error(
                    "prompt",
                    message="expected a prompt, or else `messages` or a `behaviour`; got none of them",
                )
            return self
        if self.join != "exact":
            raise field_error("join", message="expected `exact` where `messages` are given; got 'space'")
        for name in ("prompt", "completion"):
            if getattr(self, name) is not None:
                raise field_error(
                    name,
                    message=f"expected either `messages` or a prompt and a completion; got `messages` and {name}",
                )
        if (role := self.messages[-1]["role"]) != "assistant":
            raise field_error(
                *("messages", len(self.messages) - 1, "role"),
                message="expected the last message, which is explained, to have the role assistant; "
                f"got {role[:100]!r}",
            )
        try:
            length = len(json.dumps(self.messages, ensure_ascii=False, default=str))
        except RecursionError:
            message = "a message is nested too deeply; expected plain fields, lists and objects"
            raise field_error("messages", message=message) from None
        if length > MAX_QUERY_CHARACTERS:
            raise field_error(
                "messages",
                message=f"expected at most {MAX_QUERY_CHARACTERS:,} characters of JSON, got {length:,}",
            )
        return self

    @model_validator(mode="after")
    def _require_span_within_completion(self) -> Self:
        if self.span is not None:
            what = "the completion" if self.messages is None else "the last message's content"
            text = self.explained_text
            if text is None:
                raise field_error(
                    "span", message=f"span counts characters of {what}: expected a text there, got none"
                )
            (start, end), length = self.span, len(text)
            if not 0 <= start < end <= length:
                raise field_error(
                    "span",
                    message=f"expected 0 ≤ start < end ≤ {length}, the characters of {what}; got [{start}, {end}]",
                )
        return self

    @model_validator(mode="after")
    def _require_another_completion(self) -> Self:
        if self.instead_of is None:
            return self
        text = self.explained_text
        if text is None and self.messages is not None:
            raise field_error(
                "instead_of",
                message="it replaces the content of the last message: expected that content to be a text, got none",
            )
        if text is not None and self.instead_of == (text if self.span is None else text[slice(*self.span)]):
            raise field_error(
                "instead_of",
                message="expected a text that differs from the explained one, got the same: leave it out to ask why "
                "the model says it at all",
            )
        return self


class TaskQuery(Spec):
    """A prompt and a completion that are typical of a task."""

    prompt: str = Field(max_length=1_000_000)
    completion: str = Field(min_length=1, max_length=1_000_000)


class ProfileSpec(Spec):
    """A profile to fit to a task: its preconditioner mixes in the second moment of the task's query gradients."""

    name: IndexName
    """Name of the profile, which queries give as `profile`."""
    queries: tuple[TaskQuery, ...] | None = Field(default=None, min_length=1, max_length=MAX_INLINE_DOCUMENTS)
    """A sample of the task's queries; give either this or `dataset`."""
    dataset: DatasetSpec | None = None
    """Dataset to read the queries from; its columns are `prompt` and `completion`."""
    mixing: float | None = Field(default=None, ge=0, le=1)
    """Share of the queries' second moment in the mix, from 0 to 1. By default it is chosen by matching eigenvalues
    (TrackStar, section 3)."""

    @model_validator(mode="after")
    def _require_one_source(self) -> Self:
        if (self.dataset is None) == (self.queries is None):
            raise ValueError("expected exactly one of `queries` and `dataset`")
        return self
