"""Tokenises queries in the way of the index's documents, and lets the model complete those without a completion."""

from dataclasses import dataclass

from bergson_core.attribution.chat_queries import render_chat_queries, split_last_turn, tokenize_chat_query
from bergson_core.data.batching import Tokens, require_max_tokens, tokenize, with_loss_weight
from bergson_core.data.chat_template import RenderedChat
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
        return self._require_usable(TokenizedQuery(query, *split_last_turn(chat), tokens))

    def _require_usable(self, tokenized: TokenizedQuery) -> TokenizedQuery:
        """Returns a query that the model takes, and that has a loss."""
        tokens = tokenized.tokens
        require_max_tokens(tokens, context_limit(self.model, None), "prompt and completion together")
        if tokens.n_labelled == 0:
            raise InvalidInput(
                "nothing to attribute: the completion, or its span, has no token that follows another; "
                "expected a prompt, or a longer completion or span"
            )
        return tokenized
