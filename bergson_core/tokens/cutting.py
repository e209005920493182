"""Cuts a text that is too long into parts, each of which is a text of its own that the model takes.

A part is cut between tokens and never within a character. It is tokenised again by itself, as any text is, and is made
shorter if it then has too many tokens: what an index stores and what it was computed from are the same text.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from transformers import PreTrainedTokenizerBase

from bergson_core.errors import InvalidInput
from bergson_core.tokens.tokenization import encode


@dataclass(frozen=True)
class TextPart:
    """The characters [start, end) of a text, which have `tokens` tokens."""

    start: int
    end: int
    tokens: int


def iter_text_parts(
    tokenizer: PreTrainedTokenizerBase, text: str, max_tokens: int, overlap: int = 0
) -> Iterator[TextPart]:
    """Yields the parts of a text in order. Together they have all of its characters.

    Args:
        tokenizer: Tokenizer of the model, a fast one.
        text: The text.
        max_tokens: Largest number of tokens of a part, special tokens included.
        overlap: Tokens that a part repeats of the one before, as far as this leaves each part some text of its own.

    Raises:
        InvalidInput: A single character has more tokens than a part may have.
    """
    encoded = encode(
        tokenizer, text, add_special_tokens=False, return_offsets_mapping=True, return_attention_mask=False
    )
    # The part of the tokens [i, j) is text[bounds[i] : bounds[j]]. A token's white space before it, which some
    # tokenizers do not count to its characters, goes with it.
    ends = np.maximum.accumulate(np.array([end for _, end in encoded["offset_mapping"]], dtype=np.int64))
    bounds = [0, *ends.tolist()]
    bounds[-1] = len(text)
    count = len(ends)
    capacity = max(1, max_tokens - tokenizer.num_special_tokens_to_add())
    first = 0
    while first < count:
        if bounds[first] == bounds[first + 1]:  # a further token of a character that the part before has
            first += 1
            continue
        last = min(first + capacity, count)
        while (tokens := _count_tokens(tokenizer, text[bounds[first] : bounds[last]])) > max_tokens:
            if last == first + 1:
                raise InvalidInput(
                    f"the text cannot be cut into parts of {max_tokens} tokens: "
                    f"{text[bounds[first] : bounds[last]]!r} alone has {tokens}"
                )
            last = max(first + 1, last - (tokens - max_tokens))
        yield TextPart(bounds[first], bounds[last], tokens)
        if last == count:
            return
        first = max(first + 1, last - overlap)


def _count_tokens(tokenizer: PreTrainedTokenizerBase, text: str) -> int:
    return len(encode(tokenizer, text, return_attention_mask=False)["input_ids"])
