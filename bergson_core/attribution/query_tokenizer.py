"""Tokenises queries in the way of the index's documents, and lets the model complete those without a completion."""

from dataclasses import dataclass

from bergson_core.data.batching import Tokens, tokenize, with_loss_weight
from bergson_core.errors import InvalidInput
from bergson_core.models.generation import generate_completion
from bergson_core.models.language_model import LanguageModel, token_limits
from bergson_core.schemas.build import Loss
from bergson_core.schemas.query import AttributionQuery


@dataclass(frozen=True)
class TokenizedQuery:
    """A query with its completion, given or generated, and the tokens of prompt and completion together."""

    query: AttributionQuery
    completion: str
    tokens: Tokens


@dataclass(frozen=True)
class QueryTokenizer:
    """Tokenises queries for a model, with the longest query in its `max_tokens`; `loss` is that of the index's rows."""

    model: LanguageModel
    loss: Loss

    def complete_and_tokenize(self, query: AttributionQuery) -> TokenizedQuery:
        """Returns the tokens of a query, whose completion is generated where it has none.

        Raises:
            TooLong: Prompt and completion together are longer than the model takes.
            InvalidInput: The model has no embedding for a token, it generates nothing, or no token of the completion
                has one before it.
        """
        limits, what = token_limits(self.model), "prompt and completion together"
        completion = query.completion
        limits.require_plausible_length(query.prompt + (completion or ""), what)
        if completion is None:
            completion = generate_completion(self.model, query.prompt, query.max_new_tokens)
        tokens = self.tokenize(query, completion)
        limits.require(tokens, what)
        if tokens.n_labelled == 0:
            raise InvalidInput(
                "nothing to attribute: the completion, or its span, has no token that follows another; "
                "expected a prompt, or a longer completion or span"
            )
        return TokenizedQuery(query, completion, tokens)

    def tokenize(self, query: AttributionQuery, completion: str) -> Tokens:
        """Returns the tokens of a query's prompt and of this completion; those of the span are labelled."""
        assert self.model.tokenizer is not None  # load_model always gives one
        (tokens,) = tokenize(self.model.tokenizer, [query.prompt], [completion], [query.span])
        return with_loss_weight(tokens, self.loss)
