"""Queries that are chats: rendered together, and tokenised as the chats of the index were."""

from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase

from bergson_core.attribution.queries.isolation import run_together_or_alone
from bergson_core.errors import BergsonError, InvalidInput
from bergson_core.models.language_model import LanguageModel
from bergson_core.schemas.query import AttributionQuery
from bergson_core.tokens.chat_template import RenderedChat, Span, render_chats, tokenize_rendered
from bergson_core.tokens.tokenization import Tokens


def render_chat_queries(
    model: LanguageModel, queries: Sequence[AttributionQuery]
) -> dict[int, RenderedChat | BergsonError]:
    """Returns the rendered chats, or the errors that they cause, of those queries that have messages, by position.

    All chats are rendered in one process, whose start takes most of the time. Where rendering them together fails, as
    when one takes too long, each is rendered by itself.
    """
    chats = {number: query.messages for number, query in enumerate(queries) if query.messages is not None}
    rendered = run_together_or_alone(
        list(chats.values()), lambda batch: render_chats(_tokenizer(model), batch, model.chat_date)
    )
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
    if query.span is not None:
        chat = RenderedChat(chat.text, [_locate_span(query, chat, query.span)])
    (tokens,) = tokenize_rendered(_tokenizer(model), [chat])
    return tokens


def split_last_turn(chat: RenderedChat) -> tuple[str, str]:
    """Returns (the text before what the assistant says last, what the assistant says last)."""
    start, end = chat.spans[-1] if chat.spans else (len(chat.text), len(chat.text))
    return chat.text[:start], chat.text[start:end]


def _locate_span(query: AttributionQuery, chat: RenderedChat, span: Span) -> Span:
    """Returns the characters of the rendered chat that a span of the last message's content stands for."""
    assert query.messages is not None
    content: str = query.messages[-1]["content"]
    before, turn = split_last_turn(chat)
    trimmed = content.strip()  # as many templates do
    position = turn.rfind(trimmed)
    if not trimmed or position < 0:
        raise InvalidInput(
            "span: the chat template changes the content of the last message, so that its characters cannot be found "
            "in the rendered chat; leave span out"
        )
    shift = len(before) + position - (len(content) - len(content.lstrip()))
    return span[0] + shift, span[1] + shift


def _tokenizer(model: LanguageModel) -> PreTrainedTokenizerBase:
    assert model.tokenizer is not None  # load_model always gives one
    return model.tokenizer
