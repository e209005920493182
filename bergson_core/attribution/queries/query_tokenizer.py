"""Tokenises queries in the way of the index's documents, and lets the model complete those without a completion.

The loss of a query that is a chat is taken over all that the assistant says, as in a document, so that a chat finds
itself in an index that holds it. What the last turn alone owes to the documents is asked with a span over its content.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from bergson_core.attribution.queries.chat_queries import (
    render_chat_queries,
    split_last_turn,
    tokenize_chat_query,
)
from bergson_core.errors import BergsonError, InvalidInput
from bergson_core.models.generation import generate_completion
from bergson_core.models.language_model import LanguageModel, token_limits
from bergson_core.schemas.build import Loss
from bergson_core.schemas.query import AttributionQuery
from bergson_core.schemas.results import QueryEcho, QueryWarning
from bergson_core.tokens.chat_template import RenderedChat
from bergson_core.tokens.tokenization import Tokens, encode_context, tokenize, with_loss_weight
from bergson_core.tokens.word_joins import JoinChecker


@dataclass(frozen=True)
class TokenizedQuery:
    """A query with its completion, given or generated, and the tokens of prompt and completion together.

    Attributes:
        query: The query.
        prompt: Text before the completion. In a chat, the rendered text before what the assistant says last.
        completion: The completion that is explained, with the space that `join` has put before it. In a chat, what the
            assistant says last.
        tokens: The tokens of prompt and completion; those of the completion, or of its span, are labelled.
        generated_ids: Ids of the completion's tokens where the model generated it, else None.
        warnings: What was probably not meant about the query.
        alternative: The query's `instead_of`, in the same form and with a negative weight.
    """

    query: AttributionQuery
    prompt: str
    completion: str
    tokens: Tokens
    generated_ids: Sequence[int] | None = None
    warnings: Sequence[QueryWarning] = ()
    alternative: "TokenizedQuery | None" = None

    @property
    def weighted_tokens(self) -> list[Tokens]:
        """The texts whose weighted losses add up to what is explained: the completion, and less it `instead_of`."""
        return [self.tokens] if self.alternative is None else [self.tokens, self.alternative.tokens]

    def echo(self, losses: Sequence[float]) -> QueryEcho:
        """Returns what an answer says of the query, whose weighted tokens have these losses."""
        return QueryEcho(
            prompt=self.prompt,
            completion=self.completion,
            generated=self.query.completion is None and self.query.messages is None,
            token_ids=None if self.generated_ids is None else list(self.generated_ids),
            loss=float(losses[0]),
            n_tokens=self.tokens.n_labelled,
            instead_of=self.alternative and self.alternative.completion,
            instead_of_loss=None if self.alternative is None else float(losses[1]),
        )


@dataclass(frozen=True)
class QueryTokenizer:
    """Tokenises queries for a model, with the longest query in its `max_tokens`; `loss` is that of the index's rows."""

    model: LanguageModel
    loss: Loss

    @cached_property
    def join_checker(self) -> JoinChecker:
        """Checks how prompts and completions meet."""
        assert self.model.tokenizer is not None  # load_model always gives one
        return JoinChecker(self.model.tokenizer)

    def complete_and_tokenize(
        self,
        query: AttributionQuery,
        chat: RenderedChat | BergsonError | None = None,
        alternative_chat: RenderedChat | BergsonError | None = None,
    ) -> TokenizedQuery:
        """Returns the tokens of a query, whose completion is generated where it has none.

        Args:
            query: The query.
            chat: What `render_chat_queries` returned for it, if it has messages; None renders them.
            alternative_chat: The same for `query.alternative()`.

        Raises:
            TooLong: Prompt and completion together are longer than the model takes.
            InvalidInput: The model has no embedding for a token, it generates nothing, no token of the completion has
                one before it, the messages cannot be rendered, or `instead_of` has the tokens of the completion.
        """
        tokenized = self._complete(query, chat)
        alternative = query.alternative()
        if alternative is None:
            return tokenized
        try:
            other = self._complete(alternative, alternative_chat)
        except InvalidInput as error:
            raise type(error)(f"instead_of: {error}") from error
        if np.array_equal(other.tokens.ids, tokenized.tokens.ids):
            raise InvalidInput(
                "instead_of: expected a text that differs from the completion, got one with the same tokens"
            )
        warnings = [
            warning.model_copy(update={"detail": f"instead_of: {warning.detail}"})
            for warning in other.warnings
        ]
        return replace(
            tokenized,
            alternative=replace(other, tokens=other.tokens.negated()),
            warnings=[*tokenized.warnings, *warnings],
        )

    def _complete(self, query: AttributionQuery, chat: RenderedChat | BergsonError | None) -> TokenizedQuery:
        """Returns the tokens of a query, without those of its `instead_of`."""
        limits = token_limits(self.model)
        if query.messages is not None:
            what = "the rendered chat"
            tokenized = self._read_chat(query, chat)
        else:
            what, prompt = "the text of prompt and completion", query.prompt or ""
            limits.require_plausible_length(prompt + (query.completion or ""), what)
            read, completion = self._read, query.completion
            tokenized = self._generate(query, prompt) if completion is None else read(query, completion)
        limits.require(tokenized.tokens, what)
        if tokenized.tokens.n_labelled == 0:
            raise InvalidInput(
                "nothing to attribute: the completion, or its span, has no token that follows another; "
                "expected a prompt, or a longer completion or span"
            )
        return tokenized

    def tokenize_answered(self, query: AttributionQuery, echo: QueryEcho) -> list[Tokens]:
        """Returns `TokenizedQuery.weighted_tokens` of a query that was answered.

        The tokens of a generated completion are in the answer's echo.
        """
        alternative = query.alternative()
        if query.messages is not None:
            tokens = self._read_chat(query).tokens
        elif echo.token_ids is None:
            tokens = self._read(query, query.completion or echo.completion or "").tokens
        else:
            context = encode_context(self.join_checker.tokenizer, query.prompt or "")
            tokens = self._label(query, context, echo.token_ids)
        if alternative is None:
            return [tokens]
        return [tokens, self._complete(alternative, None).tokens.negated()]

    def _generate(self, query: AttributionQuery, prompt: str) -> TokenizedQuery:
        generated = generate_completion(self.model, prompt, query.max_new_tokens)
        tokens = self._label(query, generated.context_ids, generated.ids)
        warnings = self.join_checker.generated_warnings(prompt, generated.text, generated.context_ids)
        return TokenizedQuery(query, prompt, generated.text, tokens, generated.ids, warnings)

    def _read(self, query: AttributionQuery, completion: str) -> TokenizedQuery:
        """Returns the tokens of the query's prompt with this completion. Those of the span are labelled."""
        tokenizer, prompt, given, span = (
            self.join_checker.tokenizer,
            query.prompt or "",
            completion,
            query.span,
        )
        if query.join == "space":
            completion = self.join_checker.join(prompt, given)
        if span is not None:
            shift = len(completion) - len(given)
            span = (span[0] + shift, span[1] + shift)
        (tokens,) = tokenize(tokenizer, [prompt], [completion], [span], label_end=False)
        warnings = self.join_checker.given_warnings(prompt, completion)
        return TokenizedQuery(query, prompt, completion, self._weigh(query, tokens), warnings=warnings)

    def _read_chat(
        self, query: AttributionQuery, chat: RenderedChat | BergsonError | None = None
    ) -> TokenizedQuery:
        chat = chat or render_chat_queries(self.model, [query])[0]
        if isinstance(chat, BergsonError):
            raise chat
        tokens = self._weigh(query, tokenize_chat_query(self.model, query, chat))
        return TokenizedQuery(query, *split_last_turn(chat), tokens)

    def _label(self, query: AttributionQuery, context_ids: Sequence[int], ids: Sequence[int]) -> Tokens:
        """Returns the tokens of context and completion; those of the completion are labelled."""
        tokens = Tokens.labelled_from(np.array([*context_ids, *ids], dtype=np.int64), len(context_ids))
        return self._weigh(query, tokens)

    def _weigh(self, query: AttributionQuery, tokens: Tokens) -> Tokens:
        """Returns the tokens with the loss of the index's rows, of what the query explains."""
        return replace(with_loss_weight(tokens, self.loss), log_odds=query.objective == "log_odds")
