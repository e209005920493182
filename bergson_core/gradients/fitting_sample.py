"""Draws the documents that normalizers are fitted from: so many documents and tokens as the settings say."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Final

import numpy as np

from bergson_core.schemas.build import GradientSpec, NormalizerKind
from bergson_core.tokens.tokenization import Tokens

SAMPLE_TOKENS: Final[Mapping[NormalizerKind, int]] = {
    "none": 2**12,
    "adafactor": 2**12,
    "adam": 2**13,
    "kfac": 2**13,
}
"""Tokens of a sample by default; fewer give the same LDS (docs/quality.md)."""
MIN_SAMPLE_DOCUMENTS: Final = 16
"""Documents that a sample has at least, if the corpus has so many, however long they are."""
_DRAWN_TOGETHER: Final = 256
"""Documents that are tokenised together."""


def sample_documents(settings: GradientSpec, documents: int, tokens_per_document: float) -> int:
    """Returns how many documents `choose_sample` takes of so many, if all have about the same number of tokens."""
    budget_tokens = settings.sample_tokens or SAMPLE_TOKENS[settings.normalizer]
    fitting = max(MIN_SAMPLE_DOCUMENTS, math.ceil(budget_tokens / max(1.0, tokens_per_document)))
    return min(settings.sample_size, documents, fitting)


def sample_row_numbers(total: int, size: int, seed: int) -> list[int]:
    """Returns `size` row numbers of `total`, or all of them where there are fewer, ascending.

    The same arguments always give the same row numbers.
    """
    return sorted(_draw(total, size, seed))


def _draw(total: int, size: int, seed: int) -> list[int]:
    """Returns the row numbers of `sample_row_numbers` in the order in which they were drawn."""
    generator = np.random.Generator(np.random.Philox(seed))
    return generator.choice(total, min(size, total), replace=False).tolist()


def choose_sample(
    total: int, settings: GradientSpec, tokenize: Callable[[Sequence[int]], Mapping[int, Tokens]]
) -> list[Tokens]:
    """Returns the documents that normalizers are fitted from, in the order of their numbers.

    They are drawn at random until there are `settings.sample_size` of them, or until they have
    `settings.sample_tokens` tokens and are at least `MIN_SAMPLE_DOCUMENTS`. Documents without labelled tokens add to
    neither the tokens nor the moments.

    Args:
        total: The number of documents.
        settings: The size of the sample, and the seed.
        tokenize: Returns the tokens of documents of some ascending numbers, by number. It may leave some out.
    """
    drawn = _draw(total, settings.sample_size, settings.seed)
    budget_tokens = settings.sample_tokens or SAMPLE_TOKENS[settings.normalizer]
    sample: dict[int, Tokens] = {}
    taken_tokens = 0
    for start in range(0, max(1, len(drawn)), _DRAWN_TOGETHER):
        numbers = drawn[start : start + _DRAWN_TOGETHER]
        documents = tokenize(sorted(numbers))
        for number in numbers:
            if taken_tokens >= budget_tokens and len(sample) >= MIN_SAMPLE_DOCUMENTS:
                return _in_order(sample)
            if number in documents:
                sample[number] = documents[number]
                taken_tokens += len(documents[number].ids) if documents[number].n_labelled else 0
    return _in_order(sample)


def _in_order(sample: Mapping[int, Tokens]) -> list[Tokens]:
    return [sample[number] for number in sorted(sample)]
