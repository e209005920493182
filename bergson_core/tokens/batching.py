"""Tokenises prompts and completions, and puts tokenised documents into batches of about equal cost.

Legend: n documents of a batch, q sequences, s positions. A document is one sequence; a preference pair is two, the
chosen and the rejected one. All documents of a batch are of one kind.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from bergson_core.tokens.preference_pairs import PairLoss
from bergson_core.tokens.tokenization import Tokens

BUDGET_TOKENS = 4096
"""Default number of tokens of a batch, padding included."""
_CPU_STEP_TOKENS = 512
"""The most tokens of a batch on a CPU that queries wait for. Larger batches are no faster there."""


@dataclass(frozen=True)
class Batch:
    """Documents side by side, padded on the right.

    Attributes:
        indices: Positions of the documents in the sequence that the batch was made from, int64 [n].
        input_ids: Token ids, int64 [q, s], the sequences of a document beside each other.
        mask: 1 on tokens and 0 on padding, int64 [q, s]; None if there is no padding.
        labelled: Whether the loss is taken over a token, bool [q, s].
        weights: Number that each document's loss is multiplied by, float64 [n]; None if all are 1.
        log_odds: Whether the loss of a document's tokens is their negative log-odds, bool [n]; None if of none.
        pairs: The loss of the documents, if they are preference pairs.
    """

    indices: np.ndarray
    input_ids: Tensor
    mask: Tensor | None
    labelled: Tensor
    weights: Tensor | None
    log_odds: Tensor | None = None
    pairs: PairLoss | None = None

    def __len__(self) -> int:
        return len(self.indices)

    @property
    def sequences_per_document(self) -> int:
        """q / n."""
        return 1 if self.pairs is None else 2

    @property
    def positions(self) -> int:
        """Number of positions of a document, padding included: s, or 2 s of a pair."""
        return self.sequences_per_document * self.input_ids.shape[1]

    def token_positions(self, number: int) -> Tensor:
        """Returns where the tokens of a document are among its positions, in order, on the CPU."""
        if self.mask is None:
            return torch.arange(self.positions)
        return self.mask.reshape(len(self), -1)[number].nonzero()[:, 0].cpu()

    @property
    def n_tokens(self) -> int:
        """Number of tokens without padding."""
        return self.input_ids.numel() if self.mask is None else int(self.mask.sum())


def step_budget_tokens(device: torch.device) -> int:
    """Returns the most tokens, padding included, of a batch that other queries wait for."""
    return _CPU_STEP_TOKENS if device.type == "cpu" else BUDGET_TOKENS


def iter_length_buckets(lengths: Sequence[int], budget_tokens: int) -> Iterator[list[int]]:
    """Groups documents of similar length into batches, the longest first.

    The same lengths always give the same batches.

    Args:
        lengths: Number of tokens of each document.
        budget_tokens: Largest number of tokens of a batch, padding included. A longer document is a batch of its own.

    Yields:
        The positions of the documents of each batch.
    """
    batch: list[int] = []
    for index in sorted(range(len(lengths)), key=lambda k: (-lengths[k], k)):
        if batch and (len(batch) + 1) * lengths[batch[0]] > budget_tokens:
            yield batch
            batch = []
        batch.append(index)
    if batch:
        yield batch


def iter_batches(
    documents: Sequence[Tokens], budget_tokens: int, device: torch.device | str = "cpu"
) -> Iterator[Batch]:
    """Yields the documents in batches of similar length, and preference pairs in batches of their own.

    Args:
        documents: The documents.
        budget_tokens: Largest number of tokens of a batch, padding included. A longer document is a batch of its own.
        device: Device of the batches' tensors.
    """
    for is_pair in (False, True):
        numbers = [k for k, tokens in enumerate(documents) if (tokens.pair is not None) == is_pair]
        for places in iter_length_buckets([documents[k].padded for k in numbers], budget_tokens):
            indices = [numbers[place] for place in places]
            yield _collate([documents[k] for k in indices], indices, device)


def _collate(documents: list[Tokens], indices: list[int], device: torch.device | str) -> Batch:
    pairs = [tokens.pair for tokens in documents if tokens.pair is not None]
    sequences = [sequence for tokens in documents for sequence in tokens.sequences]
    lengths = np.array([len(tokens.ids) for tokens in sequences])
    positions = np.arange(max(1, lengths.max()))
    ids = np.zeros((len(sequences), len(positions)), dtype=np.int64)
    labelled = np.zeros(ids.shape, dtype=bool)
    for row, labels, tokens in zip(ids, labelled, sequences, strict=True):
        row[: len(tokens.ids)] = tokens.ids
        labels[: len(tokens.ids)] = tokens.labels
    is_token = positions < lengths[:, None]
    weights = torch.tensor([tokens.weight for tokens in documents], dtype=torch.float64)
    log_odds = torch.tensor([tokens.log_odds for tokens in documents])
    return Batch(
        indices=np.array(indices),
        input_ids=torch.from_numpy(ids).to(device),
        mask=None if is_token.all() else torch.from_numpy(is_token.astype(np.int64)).to(device),
        labelled=torch.from_numpy(labelled).to(device),
        weights=None if (weights == 1).all() else weights.to(device),
        log_odds=log_odds.to(device) if log_odds.any() else None,
        pairs=PairLoss.of(pairs) if pairs else None,
    )
