"""Tokenises queries in the way of the index's documents, and lets the model complete those without a completion.

The loss of a query that is a chat is taken over all that the assistant says, as in a document, so that a chat finds
itself in an index that holds it. What the last turn alone owes to the documents is asked with a span over its content.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from bergson_core.data.batching import Tokens, encode_context, tokenize, with_loss_weight
from bergson_core.data.chat_template import RenderedChat, Span, render_chats, tokenize_rendered
from bergson_core.data.word_joins import JoinChecker
from bergson_core.errors import InvalidInput
from bergson_core.models.generation import generate_completion
from bergson_core.models.language_model import LanguageModel, token_limits
from bergson_core.schemas.build import Loss
from bergson_core.schemas.query import AttributionQuery
from bergson_core.schemas.results import QueryEcho, QueryWarning


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
    """

    query: AttributionQuery
    prompt: str
    completion: str
    tokens: Tokens
    generated_ids: Sequence[int] | None = None
    warnings: Sequence[QueryWarning] = ()


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
        self, query: AttributionQuery, chat: RenderedChat | InvalidInput | None = None
    ) -> TokenizedQuery:
        """Returns the tokens of a query, whose completion is generated where it has none.

        Args:
            query: The query.
            chat: What `render_chat_queries` returned for it, if it has messages; None renders them.

        Raises:
            TooLong: Prompt and completion together are longer than the model takes.
            InvalidInput: The model has no embedding for a token, it generates nothing, no token of the completion has
                one before it, or the messages cannot be rendered.
        """
        limits = token_limits(self.model)
        if query.messages is not None:
            what = "the rendered chat"
            tokenized = self._read_chat(query, chat)
        else:
            what, prompt = "prompt and completion together", query.prompt or ""
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

    def tokenize_answered(self, query: AttributionQuery, echo: QueryEcho) -> Tokens:
        """Returns the tokens of a query that was answered; those of a generated completion are in the answer's echo."""
        if query.messages is not None:
            return self._read_chat(query).tokens
        if echo.token_ids is None:
            return self._read(query, query.completion or echo.completion).tokens
        return self._label(encode_context(self.join_checker.tokenizer, query.prompt or ""), echo.token_ids)

    def _generate(self, query: AttributionQuery, prompt: str) -> TokenizedQuery:
        generated = generate_completion(self.model, prompt, query.max_new_tokens)
        tokens = self._label(generated.context_ids, generated.ids)
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
        return TokenizedQuery(
            query, prompt, completion, with_loss_weight(tokens, self.loss), warnings=warnings
        )

    def _read_chat(
        self, query: AttributionQuery, chat: RenderedChat | InvalidInput | None = None
    ) -> TokenizedQuery:
        chat = chat or render_chat_queries(self.model, [query])[0]
        if isinstance(chat, InvalidInput):
            raise chat
        tokens = with_loss_weight(tokenize_chat_query(self.model, query, chat), self.loss)
        return TokenizedQuery(query, *_split_last_turn(chat), tokens)

    def _label(self, context_ids: Sequence[int], ids: Sequence[int]) -> Tokens:
        """Returns the tokens of context and completion; those of the completion are labelled."""
        tokens = Tokens.labelled_from(np.array([*context_ids, *ids], dtype=np.int64), len(context_ids))
        return with_loss_weight(tokens, self.loss)


def render_chat_queries(
    model: LanguageModel, queries: Sequence[AttributionQuery]
) -> dict[int, RenderedChat | InvalidInput]:
    """Returns the rendered chats, or the errors that they cause, of those queries that have messages, by position.

    All chats are rendered in one process, whose start takes most of the time. Where rendering them together fails, as
    when one takes too long, each is rendered by itself.
    """
    assert model.tokenizer is not None  # load_model always gives one
    chats = {number: query.messages for number, query in enumerate(queries) if query.messages is not None}
    try:
        rendered = render_chats(model.tokenizer, list(chats.values()), model.chat_date)
    except InvalidInput as error:
        if len(chats) == 1:
            return dict.fromkeys(chats, error)
        rendered = [render_chat_queries(model, [queries[number]])[0] for number in chats]
    return dict(zip(chats, rendered, strict=True))


def tokenize_chat_query(model: LanguageModel, query: AttributionQuery, chat: RenderedChat) -> Tokens:
    """Returns the tokens of a query; what the assistant says in it is labelled, or the query's span of the last turn.

    Args:
        model: The model of the index, with its tokenizer.
        query: A query with messages.
        chat: Its rendered chat.

    Raises:
        InvalidInput: There is a span, and the template changes the content that it counts characters of.
    """
    assert model.tokenizer is not None  # load_model always gives one
    if query.span is not None:
        chat = RenderedChat(chat.text, [_locate_span(query, chat, query.span)])
    (tokens,) = tokenize_rendered(model.tokenizer, [chat])
    return tokens


def _split_last_turn(chat: RenderedChat) -> tuple[str, str]:
    """Returns (the text before what the assistant says last, what the assistant says last)."""
    start, end = chat.spans[-1] if chat.spans else (len(chat.text), len(chat.text))
    return chat.text[:start], chat.text[start:end]


def _locate_span(query: AttributionQuery, chat: RenderedChat, span: Span) -> Span:
    """Returns the characters of the rendered chat that a span of the last message's content stands for."""
    assert query.messages is not None
    content: str = query.messages[-1]["content"]
    before, turn = _split_last_turn(chat)
    trimmed = content.strip()  # as many templates do
    position = turn.rfind(trimmed)
    if not trimmed or position < 0:
        raise InvalidInput(
            "span: the chat template changes the content of the last message, so that its characters cannot be found "
            "in the rendered chat; leave span out"
        )
    shift = len(before) + position - (len(content) - len(content.lstrip()))
    return span[0] + shift, span[1] + shift
