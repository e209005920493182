"""Tokenises queries in the way of the index's documents, and lets the model complete those without a completion.

The loss of a query that is a chat is taken over all that the assistant says, as in a document, so that a chat finds
itself in an index that holds it. What the last turn alone owes to the documents is asked with a span over its content.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from bergson_core.data.batching import Tokens, require_max_tokens, tokenize, with_loss_weight
from bergson_core.data.chat_template import RenderedChat, Span, render_chats, tokenize_rendered
from bergson_core.errors import InvalidInput
from bergson_core.models.generation import generate_completion
from bergson_core.models.language_model import LanguageModel, context_limit
from bergson_core.schemas.build import Loss
from bergson_core.schemas.query import AttributionQuery


@dataclass(frozen=True)
class TokenizedQuery:
    """A query with its completion, given or generated, and the tokens of prompt and completion together.

    In a chat, the completion is what the assistant says last, and the prompt is the rendered text before it.
    """

    query: AttributionQuery
    prompt: str
    completion: str
    tokens: Tokens


@dataclass(frozen=True)
class QueryTokenizer:
    """Tokenises queries for a model; `loss` is the one whose gradients the index holds."""

    model: LanguageModel
    loss: Loss

    def complete_and_tokenize(
        self, query: AttributionQuery, chat: RenderedChat | InvalidInput | None = None
    ) -> TokenizedQuery:
        """Returns the tokens of a query, whose completion is generated where it has none.

        Args:
            query: The query.
            chat: What `render_chat_queries` returned for it, if it has messages; None renders them.

        Raises:
            TooLong: Prompt and completion together are longer than the model takes.
            InvalidInput: The model generates nothing, or no token of the completion has one before it, or the messages
                cannot be rendered.
        """
        if query.messages is not None:
            return self._tokenize_chat(query, chat)
        assert query.prompt is not None  # the query has one where it has no messages
        completion = query.completion
        if completion is None:
            completion = generate_completion(self.model, query.prompt, query.max_new_tokens)
        tokens = self.tokenize(query, completion)
        return self._require_usable(TokenizedQuery(query, query.prompt, completion, tokens))

    def tokenize(self, query: AttributionQuery, completion: str) -> Tokens:
        """Returns the tokens of a query's prompt and of this completion; those of the span are labelled.

        Those of a chat are in its messages, whatever the completion is.
        """
        if query.messages is not None:
            return self._tokenize_chat(query).tokens
        assert self.model.tokenizer is not None  # load_model always gives one
        (tokens,) = tokenize(self.model.tokenizer, [query.prompt or ""], [completion], [query.span])
        return with_loss_weight(tokens, self.loss)

    def _tokenize_chat(
        self, query: AttributionQuery, chat: RenderedChat | InvalidInput | None = None
    ) -> TokenizedQuery:
        chat = chat or render_chat_queries(self.model, [query])[0]
        if isinstance(chat, InvalidInput):
            raise chat
        tokens = with_loss_weight(tokenize_chat_query(self.model, query, chat), self.loss)
        return self._require_usable(TokenizedQuery(query, *_split_last_turn(chat), tokens))

    def _require_usable(self, tokenized: TokenizedQuery) -> TokenizedQuery:
        """Returns a query that the model takes, and that has a loss."""
        tokens = tokenized.tokens
        what = "prompt and completion together" if tokenized.query.messages is None else "the rendered chat"
        require_max_tokens(tokens, context_limit(self.model, None), what)
        if tokens.n_labelled == 0:
            raise InvalidInput(
                "nothing to attribute: the completion, or its span, has no token that follows another; "
                "expected a prompt, or a longer completion or span"
            )
        return tokenized


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
