"""Tokenises prompts and completions, and says which tokens the loss is taken over.

Legend: s positions.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from transformers import PreTrainedTokenizerBase

from bergson_core.errors import InvalidInput
from bergson_core.schemas.build import Loss


@dataclass(frozen=True)
class PreferencePair:
    """What makes a document a preference pair.

    Attributes:
        chosen_tokens: So many of the document's tokens are the chosen sequence; the others are the rejected one. Each
            sequence has the prompt in it.
        beta: β of the loss.
        reference_margin: log p(chosen) - log p(rejected) of the reference model, in nats; 0 without a reference.
    """

    chosen_tokens: int
    beta: float
    reference_margin: float


@dataclass(frozen=True)
class Tokens:
    """A tokenised document.

    Attributes:
        ids: Token ids, int64 [s].
        labels: Whether the loss is taken over a token, bool [s]. These are the labelled tokens.
        weight: Number that the sum of the losses of the labelled tokens is multiplied by.
        log_odds: Whether the loss of a token is its negative log-odds, log (1 - p) / p, and not -log p.
        pair: Of a preference pair, which of the tokens are which sequence; None for a document of one sequence.
    """

    ids: np.ndarray
    labels: np.ndarray
    weight: float = 1.0
    log_odds: bool = False
    pair: PreferencePair | None = None

    @classmethod
    def labelled_from(cls, ids: np.ndarray, first: int) -> "Tokens":
        """Returns a document whose tokens from position `first` on are labelled; the others are context."""
        return cls(ids, np.arange(len(ids)) >= first)

    def negated(self) -> "Tokens":
        """Returns the same document with the negative of its weight."""
        return replace(self, weight=-self.weight)

    @property
    def sequences(self) -> list["Tokens"]:
        """What the model reads: the document itself, or the chosen and the rejected sequence of a pair."""
        if self.pair is None:
            return [self]
        end = self.pair.chosen_tokens
        return [Tokens(self.ids[:end], self.labels[:end]), Tokens(self.ids[end:], self.labels[end:])]

    @property
    def longest(self) -> int:
        """Number of tokens of the longest sequence."""
        return len(self.ids) if self.pair is None else max(len(sequence.ids) for sequence in self.sequences)

    @property
    def padded(self) -> int:
        """Number of tokens of the sequences beside each other, padding included."""
        return self.longest if self.pair is None else 2 * self.longest

    @property
    def n_labelled(self) -> int:
        """Number of labelled tokens."""
        return int(self.labels.sum())


def encode(tokenizer: PreTrainedTokenizerBase, text: str | list[str], **options: Any) -> Any:
    """Calls the tokenizer and returns its result.

    Args:
        tokenizer: Tokenizer of the model.
        text: One text or several.
        **options: Arguments of the tokenizer.

    Raises:
        InvalidInput: The tokenizer has panicked, for example because a regular expression of its own backtracks too
            often on a text.
    """
    try:
        return tokenizer(text, **options)
    except BaseException as error:  # A panic in Rust code is not an `Exception`.
        if type(error).__name__ != "PanicException":
            raise
        raise InvalidInput(f"the tokenizer failed on a text: {error}") from None


def encode_context(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """Returns the token ids of a text that is to be continued.

    Special tokens that the tokenizer puts before a text are there, such as BOS; those that it puts after one are not,
    such as EOS. A special token that is written in the text itself stays.

    Raises:
        InvalidInput: The tokenizer gives up on the text.
    """
    encoded = encode(tokenizer, text, return_special_tokens_mask=True, return_attention_mask=False)
    body = [k for k, is_added in enumerate(encoded["special_tokens_mask"]) if not is_added]
    if body:
        return list(encoded["input_ids"][: body[-1] + 1])
    # A text without tokens does not tell which of the special tokens go before it: that of a letter does.
    mask = encode(tokenizer, "a", return_special_tokens_mask=True)["special_tokens_mask"]
    return list(encoded["input_ids"][: mask.index(0) if 0 in mask else 0])


def tokenize(
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str],
    completions: Sequence[str] | None,
    spans: Sequence[tuple[int, int] | None] | None = None,
    *,
    label_end: bool = True,
) -> list[Tokens]:
    """Tokenises each prompt together with its completion, as the model would see them.

    The first token of a text is never labelled, because nothing predicts it. A token that has characters of both prompt
    and completion is labelled.

    Args:
        tokenizer: Tokenizer of the model.
        prompts: Text before each completion, or the whole text without completions.
        completions: Completion of each prompt. A token is labelled if it ends inside the completion or follows it.
            Without completions all tokens but the first are labelled.
        spans: For each completion, characters [start, end) of it, or None for the whole completion. With a span, a
            token is labelled only if it shares a character with the span.
        label_end: Whether special tokens that the tokenizer puts after a text, such as EOS, are labelled. They are in
            documents, which teach where a text ends; they are not in queries, where only the completion is explained.

    Raises:
        InvalidInput: There are completions, and the tokenizer does not report which characters a token stands for.
    """
    if not prompts:
        return []
    options = {"return_attention_mask": False, "return_special_tokens_mask": not label_end}
    if completions is None:
        encoded = encode(tokenizer, list(prompts), **options)
        documents = [Tokens.labelled_from(np.asarray(ids, dtype=np.int64), 1) for ids in encoded["input_ids"]]
        return documents if label_end else _without_special_labels(documents, encoded)
    if not tokenizer.is_fast:
        raise InvalidInput(
            f"{type(tokenizer).__name__} does not report which characters a token stands for; expected a fast "
            "tokenizer (a tokenizer.json) where prompts have completions"
        )
    texts = [prompt + completion for prompt, completion in zip(prompts, completions, strict=True)]
    encoded = encode(tokenizer, texts, return_offsets_mapping=True, **options)
    documents = [
        Tokens.labelled_from(np.asarray(ids, dtype=np.int64), _first_label(offsets, len(prompt)))
        for ids, offsets, prompt in zip(encoded["input_ids"], encoded["offset_mapping"], prompts, strict=True)
    ]
    for tokens, offsets, prompt, span in zip(
        documents, encoded["offset_mapping"], prompts, spans or (), strict=False
    ):
        if span is not None:
            starts, ends = np.asarray(offsets).T - len(prompt)
            tokens.labels[(ends <= span[0]) | (starts >= span[1])] = False
    return documents if label_end else _without_special_labels(documents, encoded)


def _without_special_labels(documents: list[Tokens], encoded: Any) -> list[Tokens]:
    """Takes the labels from the special tokens that the tokenizer has added."""
    for tokens, is_added in zip(documents, encoded["special_tokens_mask"], strict=True):
        tokens.labels[np.asarray(is_added, dtype=bool)] = False
    return documents


def _first_label(offsets: Sequence[tuple[int, int]], prompt_length: int) -> int:
    """Returns the position of the first token that ends after the prompt; special tokens are empty and do not count."""
    inside = (k for k, (start, end) in enumerate(offsets) if end > max(start, prompt_length))
    return max(1, next(inside, len(offsets)))


def with_loss_weight(tokens: Tokens, loss: Loss, weight: float = 1.0) -> Tokens:
    """Returns the document with a loss that is `weight` times the sum over its labelled tokens, or times their mean."""
    return replace(tokens, weight=weight / max(1, tokens.n_labelled) if loss == "mean" else weight)
