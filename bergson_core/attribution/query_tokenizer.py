"""Tokenises queries in the way of the index's documents, and lets the model complete those without a completion."""

from dataclasses import dataclass

from bergson_core.data.batching import Tokens, require_max_tokens, tokenize, with_loss_weight
from bergson_core.errors import InvalidInput
from bergson_core.models.generation import generate_completion
from bergson_core.models.language_model import LanguageModel, context_limit
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
    """Tokenises queries for a model; `loss` is the one whose gradients the index holds."""

    model: LanguageModel
    loss: Loss

    def complete_and_tokenize(self, query: AttributionQuery) -> TokenizedQuery:
        """Returns the tokens of a query, whose completion is generated where it has none.

        Raises:
            TooLong: Prompt and completion together are longer than the model takes.
            InvalidInput: The model generates nothing, or no token of the completion has one before it.
        """
        completion = query.completion
        if completion is None:
            completion = generate_completion(self.model, query.prompt, query.max_new_tokens)
        tokens = self.tokenize(query, completion)
        require_max_tokens(tokens, context_limit(self.model, None), "prompt and completion together")
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
