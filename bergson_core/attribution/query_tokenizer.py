"""Tokenises queries in the way of the index's documents, and lets the model complete those without a completion."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from bergson_core.data.batching import (
    Tokens,
    encode_context,
    require_max_tokens,
    tokenize,
    with_loss_weight,
)
from bergson_core.data.word_joins import JoinChecker
from bergson_core.errors import InvalidInput
from bergson_core.models.generation import generate_completion
from bergson_core.models.language_model import LanguageModel, context_limit
from bergson_core.schemas.build import Loss
from bergson_core.schemas.query import AttributionQuery
from bergson_core.schemas.results import QueryEcho, QueryWarning


@dataclass(frozen=True)
class TokenizedQuery:
    """A query with its completion, given or generated, and the tokens of prompt and completion together.

    Attributes:
        query: The query.
        completion: The completion that is explained, with the space that `join` has put before it.
        tokens: The tokens of prompt and completion; those of the completion, or of its span, are labelled.
        generated_ids: Ids of the completion's tokens where the model generated it, else None.
        warnings: What was probably not meant about the query.
    """

    query: AttributionQuery
    completion: str
    tokens: Tokens
    generated_ids: Sequence[int] | None = None
    warnings: Sequence[QueryWarning] = ()


@dataclass(frozen=True)
class QueryTokenizer:
    """Tokenises queries for a model; `loss` is the one whose gradients the index holds."""

    model: LanguageModel
    loss: Loss

    @cached_property
    def join_checker(self) -> JoinChecker:
        """Checks how prompts and completions meet."""
        assert self.model.tokenizer is not None  # load_model always gives one
        return JoinChecker(self.model.tokenizer)

    def complete_and_tokenize(self, query: AttributionQuery) -> TokenizedQuery:
        """Returns the tokens of a query, whose completion is generated where it has none.

        Raises:
            TooLong: Prompt and completion together are longer than the model takes.
            InvalidInput: The model generates nothing, or no token of the completion has one before it.
        """
        tokenized = self._generate(query) if query.completion is None else self._read(query, query.completion)
        require_max_tokens(
            tokenized.tokens, context_limit(self.model, None), "prompt and completion together"
        )
        if tokenized.tokens.n_labelled == 0:
            raise InvalidInput(
                "nothing to attribute: the completion, or its span, has no token that follows another; "
                "expected a prompt, or a longer completion or span"
            )
        return tokenized

    def tokenize_answered(self, query: AttributionQuery, echo: QueryEcho) -> Tokens:
        """Returns the tokens of a query that was answered; those of a generated completion are in the answer's echo."""
        if echo.token_ids is None:
            return self._read(query, query.completion or echo.completion).tokens
        return self._label(encode_context(self.join_checker.tokenizer, query.prompt), echo.token_ids)

    def _generate(self, query: AttributionQuery) -> TokenizedQuery:
        generated = generate_completion(self.model, query.prompt, query.max_new_tokens)
        tokens = self._label(generated.context_ids, generated.ids)
        warnings = self.join_checker.generated_warnings(query.prompt, generated.text, generated.context_ids)
        return TokenizedQuery(query, generated.text, tokens, generated.ids, warnings)

    def _read(self, query: AttributionQuery, completion: str) -> TokenizedQuery:
        """Returns the tokens of the query's prompt with this completion. Those of the span are labelled."""
        tokenizer, given, span = self.join_checker.tokenizer, completion, query.span
        if query.join == "space":
            completion = self.join_checker.join(query.prompt, given)
        if span is not None:
            shift = len(completion) - len(given)
            span = (span[0] + shift, span[1] + shift)
        (tokens,) = tokenize(tokenizer, [query.prompt], [completion], [span], label_end=False)
        warnings = self.join_checker.given_warnings(query.prompt, completion)
        return TokenizedQuery(query, completion, with_loss_weight(tokens, self.loss), warnings=warnings)

    def _label(self, context_ids: Sequence[int], ids: Sequence[int]) -> Tokens:
        """Returns the tokens of context and completion; those of the completion are labelled."""
        tokens = Tokens.labelled_from(np.array([*context_ids, *ids], dtype=np.int64), len(context_ids))
        return with_loss_weight(tokens, self.loss)
