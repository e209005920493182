"""Text → tokens → batches of about equal cost.

Legend: n samples, s positions.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from bergson_core.errors import InvalidInput, TooLong

BUDGET_TOKENS = 4096
"""Tokens of a batch, padding included."""


@dataclass(frozen=True)
class Tokens:
    """One tokenised document: `ids` [s], and `labels` [s] true on the tokens that the loss is taken over.

    The loss is the sum over these tokens, times `weight`.
    """

    ids: np.ndarray
    labels: np.ndarray
    weight: float = 1.0

    @classmethod
    def labelled_from(cls, ids: np.ndarray, first: int) -> "Tokens":
        """The loss is taken over `ids[first:]`, all before is context."""
        return cls(ids, np.arange(len(ids)) >= first)

    @property
    def labelled(self) -> int:
        """Tokens that the loss is taken over."""
        return int(self.labels.sum())


@dataclass(frozen=True)
class Batch:
    """Documents side by side, padded on the right.

    `numbers` [n] are the documents' places in the sequence that was batched; `input_ids` [n, s]; `mask` [n, s] is 1
    on tokens, or None where nothing is padded; `labelled` [n, s] is true on tokens that the loss is taken over;
    `weights` [n] float64 are what their losses are multiplied by, None where all are 1.
    """

    numbers: np.ndarray
    input_ids: Tensor
    mask: Tensor | None
    labelled: Tensor
    weights: Tensor | None

    def __len__(self) -> int:
        return len(self.numbers)

    @property
    def tokens(self) -> int:
        """Tokens without padding."""
        return self.input_ids.numel() if self.mask is None else int(self.mask.sum())


def encode(tokenizer: PreTrainedTokenizerBase, text: str | list[str], **options: Any) -> Any:
    """What the tokenizer makes of `text`.

    Raises `InvalidInput` where it gives up, as an expression of its own does that goes back too often.
    """
    try:
        return tokenizer(text, **options)
    except BaseException as error:  # a panic of Rust is no Exception
        if type(error).__name__ != "PanicException":
            raise
        raise InvalidInput(f"the tokenizer gives up on a text: {error}") from None


def tokenize(
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str],
    completions: Sequence[str] | None,
    spans: Sequence[tuple[int, int] | None] | None = None,
) -> list[Tokens]:
    """Tokens of each prompt followed by its completion, tokenised together as the model would see them.

    Without completions every token but the first is labelled. With them, a token is labelled when it ends inside
    the completion; the first token of the text cannot be predicted from anything and is never labelled. With `spans`,
    characters [start, end) of each completion or None for all of it, of these the tokens that share one with the span.
    Raises `InvalidInput` for a tokenizer that does not tell where tokens come from.
    """
    if not prompts:
        return []
    if completions is None:
        encoded = encode(tokenizer, list(prompts), return_attention_mask=False)["input_ids"]
        return [Tokens.labelled_from(np.asarray(ids, dtype=np.int64), 1) for ids in encoded]
    if not tokenizer.is_fast:
        raise InvalidInput(
            f"{type(tokenizer).__name__} does not tell which characters a token stands for; expected a fast tokenizer "
            "(a tokenizer.json) where prompts have completions"
        )
    texts = [prompt + completion for prompt, completion in zip(prompts, completions, strict=True)]
    encoded = encode(tokenizer, texts, return_offsets_mapping=True, return_attention_mask=False)
    found = [
        Tokens.labelled_from(np.asarray(ids, dtype=np.int64), _first_label(offsets, len(prompt)))
        for ids, offsets, prompt in zip(encoded["input_ids"], encoded["offset_mapping"], prompts, strict=True)
    ]
    for tokens, offsets, prompt, span in zip(
        found, encoded["offset_mapping"], prompts, spans or (), strict=False
    ):
        if span is not None:
            starts, ends = np.asarray(offsets).T - len(prompt)
            tokens.labels[(ends <= span[0]) | (starts >= span[1])] = False
    return found


def _first_label(offsets: Sequence[tuple[int, int]], prompt_length: int) -> int:
    """The first token that ends after the prompt; special tokens have empty spans and do not count."""
    inside = (k for k, (start, end) in enumerate(offsets) if end > max(start, prompt_length))
    return max(1, next(inside, len(offsets)))


def require_length(tokens: Tokens, limit: int | None, what: str) -> None:
    """Raises `TooLong` where a document has more tokens than the model takes: nothing is cut silently."""
    if limit is not None and len(tokens.ids) > limit:
        raise TooLong(
            f"{what} has {len(tokens.ids)} tokens, more than the {limit} allowed; shorten or split it"
        )


def length_buckets(lengths: Sequence[int], budget_tokens: int) -> Iterator[list[int]]:
    """Places of the documents of each batch: longest first, at most `budget_tokens` with padding.

    A document longer than the budget is a batch of its own. The same lengths always give the same batches.
    """
    batch: list[int] = []
    for number in sorted(range(len(lengths)), key=lambda k: (-lengths[k], k)):
        if batch and (len(batch) + 1) * lengths[batch[0]] > budget_tokens:
            yield batch
            batch = []
        batch.append(number)
    if batch:
        yield batch


def batches(
    documents: Sequence[Tokens], budget_tokens: int, device: torch.device | str = "cpu"
) -> Iterator[Batch]:
    """`documents` in batches of similar length on `device`."""
    for numbers in length_buckets([len(tokens.ids) for tokens in documents], budget_tokens):
        yield _collate([documents[k] for k in numbers], numbers, device)


def _collate(documents: list[Tokens], numbers: list[int], device: torch.device | str) -> Batch:
    lengths = np.array([len(tokens.ids) for tokens in documents])
    places = np.arange(max(1, lengths.max()))
    ids = np.zeros((len(documents), len(places)), dtype=np.int64)
    labelled = np.zeros(ids.shape, dtype=bool)
    for row, labels, tokens in zip(ids, labelled, documents, strict=True):
        row[: len(tokens.ids)] = tokens.ids
        labels[: len(tokens.ids)] = tokens.labels
    present = places < lengths[:, None]
    weights = torch.tensor([tokens.weight for tokens in documents], dtype=torch.float64)
    return Batch(
        numbers=np.array(numbers),
        input_ids=torch.from_numpy(ids).to(device),
        mask=None if present.all() else torch.from_numpy(present.astype(np.int64)).to(device),
        labelled=torch.from_numpy(labelled).to(device),
        weights=None if (weights == 1).all() else weights.to(device),
    )
