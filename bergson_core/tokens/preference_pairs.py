"""Tokenises preference pairs, and computes their loss from the log-probabilities of their completions.

The loss of a pair is that of DPO,

    L = -log σ(m),    m = β [log p(chosen) - log p(rejected) - margin of the reference]

with sums over the tokens of the completions. Its gradient is -β σ(-m) (∇ log p(chosen) - ∇ log p(rejected)): that of
two texts whose losses have opposite weights. In a batch a pair is therefore two sequences, the chosen one first.

Legend: n pairs of a batch, q = 2 n sequences.

Source: Rafailov et al., "Direct Preference Optimization", arXiv 2305.18290, equation 7 and section 4.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import date

import numpy as np
import torch
from jaxtyping import Float, Float64
from torch import Tensor
from torch.nn.functional import logsigmoid
from transformers import PreTrainedTokenizerBase

from bergson_core.errors import InvalidInput
from bergson_core.schemas.preference.pair_texts import PairTexts
from bergson_core.schemas.record import Record
from bergson_core.tokens.chat_template import tokenize_chats
from bergson_core.tokens.tokenization import PreferencePair, Tokens, tokenize


@dataclass(frozen=True)
class PairLoss:
    """The loss of the pairs of a batch.

    Attributes:
        beta: β of each pair, float64 [n].
        reference_margin: log p(chosen) - log p(rejected) of the reference, float64 [n], in nats.
    """

    beta: Float64[Tensor, " n"]
    reference_margin: Float64[Tensor, " n"]

    @classmethod
    def of(cls, pairs: Sequence[PreferencePair]) -> "PairLoss":
        """Returns the loss of these pairs."""
        betas = torch.tensor([pair.beta for pair in pairs], dtype=torch.float64)
        margins = torch.tensor([pair.reference_margin for pair in pairs], dtype=torch.float64)
        return cls(betas, margins)

    def losses_and_weights(
        self, losses: Float[Tensor, " q"]
    ) -> tuple[Float[Tensor, " n"], Float[Tensor, " q"]]:
        """Returns the loss L [n] of each pair, and dL / d(loss of a sequence) of its two sequences [q].

        Args:
            losses: -log p of each completion, those of a pair beside each other.
        """
        beta, reference = self.beta.to(losses.device), self.reference_margin.to(losses.device)
        chosen, rejected = losses.double().unflatten(0, (-1, 2)).unbind(1)
        margin = beta * (rejected - chosen - reference)
        weight = beta * torch.sigmoid(-margin)
        weights = torch.stack([weight, -weight], dim=1).flatten()
        return -logsigmoid(margin).to(losses), weights


def tokenize_pairs(
    tokenizer: PreTrainedTokenizerBase,
    records: Sequence[Record],
    beta: float,
    chat_date: date | None = None,
) -> list[Tokens]:
    """Returns the tokens of documents that are preference pairs.

    In the beginning that both sequences share, equally many tokens are labelled in both, so that they cancel out.

    Args:
        tokenizer: Tokenizer of the model.
        records: The documents.
        beta: β of the loss.
        chat_date: The date that a chat template is told if it asks for today's; by default it is today's.

    Raises:
        InvalidInput: Both completions of a pair have the same tokens, or a chat cannot be rendered.
    """
    pairs = [(record.id, record.pair) for record in records if record.pair is not None]
    chats = [number for number, (_, pair) in enumerate(pairs) if pair.is_chat]
    texts = [number for number, (_, pair) in enumerate(pairs) if not pair.is_chat]
    tokens: dict[int, Tokens] = {}
    for numbers, kind in ((texts, _tokenize_texts), (chats, _tokenize_chats)):
        sequences = kind(tokenizer, [pairs[number] for number in numbers], chat_date)
        for place, number in enumerate(numbers):
            document_id, pair = pairs[number]
            chosen, rejected = sequences[2 * place : 2 * place + 2]
            tokens[number] = _join(chosen, rejected, document_id, pair, beta)
    return [tokens[number] for number in range(len(pairs))]


def _tokenize_texts(
    tokenizer: PreTrainedTokenizerBase, pairs: Sequence[tuple[str, PairTexts]], _chat_date: date | None
) -> list[Tokens]:
    """Returns the chosen and the rejected sequence of each pair, one after the other."""
    prompts = [pair.prompt for _, pair in pairs for _ in range(2)]
    completions = [text for _, pair in pairs for text in (pair.chosen, pair.rejected)]
    return tokenize(tokenizer, prompts, completions)


def _tokenize_chats(
    tokenizer: PreTrainedTokenizerBase, pairs: Sequence[tuple[str, PairTexts]], chat_date: date | None
) -> list[Tokens]:
    """Returns the chosen and the rejected sequence of each pair, one after the other."""
    if not pairs:
        return []
    names = [f"{name} of document {id!r}" for id, _ in pairs for name in ("chosen", "rejected")]
    return tokenize_chats(tokenizer, [chat for _, pair in pairs for chat in pair.chats()], chat_date, names)


def _join(chosen: Tokens, rejected: Tokens, document_id: str, pair: PairTexts, beta: float) -> Tokens:
    """Returns one document of both sequences."""
    shared = _count_shared(chosen.ids, rejected.ids)
    if shared == len(chosen.ids) == len(rejected.ids):
        raise InvalidInput(
            f"document {document_id!r}: chosen and rejected have the same tokens; expected two different completions"
        )
    labels = [chosen.labels.copy(), rejected.labels.copy()]
    if (
        not pair.is_chat
    ):  # a token at the border of prompt and completion may be part of both in one of the two
        first = min(shared, *(int(own.argmax()) if own.any() else shared for own in labels))
        labels = [np.arange(len(own)) >= max(1, first) for own in labels]
    else:
        both = labels[0][:shared] & labels[1][:shared]
        for own in labels:
            own[:shared] = both
    return Tokens(
        np.concatenate([chosen.ids, rejected.ids]),
        np.concatenate(labels),
        pair=PreferencePair(len(chosen.ids), beta, pair.reference_margin),
    )


def _count_shared(ids: np.ndarray, others: np.ndarray) -> int:
    """Returns how many tokens both sequences begin with."""
    length = min(len(ids), len(others))
    different = np.flatnonzero(ids[:length] != others[:length])
    return int(different[0]) if len(different) else length


def with_reference(tokens: Tokens, margin: float) -> Tokens:
    """Returns a pair with this margin of the reference."""
    assert tokens.pair is not None
    return replace(tokens, pair=replace(tokens.pair, reference_margin=margin))
