"""What a model can take: how many tokens of a text, and which."""

from dataclasses import dataclass
from typing import Final

import numpy as np
from transformers import PreTrainedTokenizerBase

from bergson_core.errors import InvalidInput, TooLong
from bergson_core.tokens.tokenization import Tokens, encode

_LONG_TEXT_CHARACTERS: Final = 100_000
_LONG_TEXT_CHARACTERS_PER_TOKEN: Final = 8
"""A text with more characters than this for each allowed token is probably too long. Text has about four."""


@dataclass(frozen=True)
class TokenLimits:
    """The tokens that a model takes.

    Attributes:
        max_tokens: Largest number of tokens of a text, or None for no limit.
        input_ids: Number of token ids that the model has embeddings for, or None if this is not known.
        output_ids: Number of token ids that the model predicts, or None if this is not known.
        tokenizer: Tokenizer that names tokens in messages, or None.
    """

    max_tokens: int | None = None
    input_ids: int | None = None
    output_ids: int | None = None
    tokenizer: PreTrainedTokenizerBase | None = None

    def require(self, tokens: Tokens, what: str) -> None:
        """Checks a text before the model is run on it, because no text is ever cut silently.

        Args:
            tokens: The text.
            what: Name of the text, for the message.

        Raises:
            TooLong: The text has too many tokens.
            InvalidInput: The model does not know one of the tokens.
        """
        self.require_length(tokens.longest, what)
        self.require_known(tokens, what)

    def require_length(self, count: int, what: str) -> None:
        """Raises `TooLong` if a text has more than `max_tokens` tokens."""
        if self.max_tokens is not None and count > self.max_tokens:
            raise TooLong(
                f"{what} has {count} tokens, more than the {self.max_tokens} allowed; shorten or split it"
            )

    def require_known(self, tokens: Tokens, what: str) -> None:
        """Raises `InvalidInput` if a text has a token that the model has no embedding for, or cannot predict."""
        ids, inputs = tokens.ids, self.input_ids
        unknown = ids < 0
        if inputs is not None:
            unknown = unknown | (ids >= inputs)
        if unknown.any():
            known = "whole numbers from 0 on" if inputs is None else f"the ids 0 to {inputs - 1}"
            raise InvalidInput(
                f"{what}: the model has no embedding for the token {self._locate(ids, unknown)}; expected {known}. "
                "Take the model's own tokenizer, resize the embeddings (resize_token_embeddings), or leave the token "
                "out"
            )
        if self.output_ids is None:
            return
        unpredicted = tokens.labels & (ids >= self.output_ids)
        if unpredicted.any():
            raise InvalidInput(
                f"{what}: the model does not predict the token {self._locate(ids, unpredicted)}; expected the ids 0 "
                f"to {self.output_ids - 1} where the loss is taken"
            )

    def require_plausible_length(self, text: str, what: str) -> None:
        """Raises `TooLong` for a text whose beginning alone is too long, so that megabytes are not tokenised for it."""
        if self.max_tokens is None or self.tokenizer is None:
            return
        beginning = max(_LONG_TEXT_CHARACTERS, _LONG_TEXT_CHARACTERS_PER_TOKEN * self.max_tokens)
        if len(text) <= beginning:
            return
        count = len(encode(self.tokenizer, text[:beginning], return_attention_mask=False)["input_ids"])
        if count > self.max_tokens:
            raise TooLong(
                f"{what} has {len(text)} characters, of which the first {beginning} have {count} tokens, more than "
                f"the {self.max_tokens} allowed; shorten or split it"
            )

    def _locate(self, ids: np.ndarray, wrong: np.ndarray) -> str:
        """Returns the first wrong token as messages show it: its text, if the tokenizer knows it, id and position."""
        position = int(wrong.argmax())
        token_id, text = int(ids[position]), None
        if self.tokenizer is not None and 0 <= token_id < len(self.tokenizer):
            text = self.tokenizer.convert_ids_to_tokens(token_id)
        name = f"id {token_id}" if text is None else f"{text!r} (id {token_id})"
        return f"{name} at position {position}"


NO_LIMITS: Final = TokenLimits()
