"""Trains a causal language model on tokenised documents: a plain AdamW loop that gives the same result for a seed.

The loop trains the demo's model, and the many short runs whose losses `retraining` compares. Each document is one
sequence, closed with the end-of-text token and padded on the right. The loss is the mean over the labelled tokens of
the documents and their end-of-text tokens, each multiplied by the weight of its document.

Legend: n documents of a batch, s positions.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Final

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from bergson_core.schemas.training import TrainingProgress, TrainingSchedule
from bergson_core.tokens.tokenization import Tokens

FILLER_TOKEN: Final = 0
"""Pads token ids. Any token would do: padding is on the right, where causal attention does not look."""
_IGNORED_LABEL: Final = -100
"""Marks the positions that `cross_entropy` leaves out."""
_SORTED_BATCHES: Final = 8
"""Batches whose documents are sorted by length together."""

_Example = tuple[list[int], list[int], float]
"""Token ids and labels of a document, equally long, and its weight."""


def train_causal_model(
    model: nn.Module,
    documents: Sequence[Tokens],
    end_token: int | None,
    schedule: TrainingSchedule,
    on_step: TrainingProgress | None = None,
) -> int:
    """Trains all weights of `model` on `documents` and returns the number of steps.

    The order of the documents is drawn from torch's global generator: call this within `reproducible`.

    Args:
        model: A causal language model of transformers; it is in evaluation mode afterwards.
        documents: Documents to train on.
        end_token: Token that is appended to each document, or None to append nothing.
        schedule: Batch size, number of steps and learning rate.
        on_step: Called after each step.
    """
    examples = [_make_example(document, end_token) for document in documents]
    steps = schedule.steps(len(examples))
    optimizer = torch.optim.AdamW(
        model.parameters(),
        schedule.learning_rate,
        (0.9, 0.95),
        weight_decay=schedule.weight_decay,
        fused=True,
    )
    warmup_steps = max(1, round(schedule.warmup * steps))
    rate_schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer,
        lambda step: min((step + 1) / warmup_steps, (steps - step) / max(1, steps - warmup_steps)),
    )
    model.train()
    for step, (ids, labels, weights) in zip(
        range(1, steps + 1), _iter_batches(examples, schedule.batch_size), strict=False
    ):
        logits = model(input_ids=ids, use_cache=False).logits
        loss = _weighted_mean_loss(logits[:, :-1], labels[:, 1:], weights)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        rate_schedule.step()
        if on_step is not None:
            on_step(step, steps, f"loss {loss.item():.2f}")
    model.eval()
    return steps


def pad_right(sequences: Sequence[Sequence[int]], filler: int) -> Tensor:
    """Returns sequences of different lengths as one tensor [n, s], filled up on the right with `filler`."""
    longest = max(map(len, sequences))
    return torch.tensor([[*sequence, *[filler] * (longest - len(sequence))] for sequence in sequences])


@contextmanager
def reproducible(seed: int, threads: int) -> Iterator[None]:
    """Seeds torch and sets its number of threads; restores the generator and the number of threads afterwards."""
    threads_before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            yield
    finally:
        torch.set_num_threads(threads_before)


def _make_example(document: Tokens, end_token: int | None) -> _Example:
    ids = document.ids.tolist()
    labels = np.where(document.labels, document.ids, _IGNORED_LABEL).tolist()
    if end_token is not None:
        ids, labels = [*ids, end_token], [*labels, end_token]
    return ids, labels, document.weight


def _weighted_mean_loss(logits: Tensor, labels: Tensor, weights: Tensor) -> Tensor:
    """Returns the mean over the labelled tokens of their cross-entropies, times the weights [n] of their documents."""
    if (weights == 1).all():
        return cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=_IGNORED_LABEL)
    losses = cross_entropy(logits.mT, labels, ignore_index=_IGNORED_LABEL, reduction="none")
    return (losses.sum(1) * weights.to(losses)).sum() / (labels != _IGNORED_LABEL).sum()


def _iter_batches(examples: Sequence[_Example], batch_size: int) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Yields token ids [n, s], labels [n, s] and weights [n] without end.

    Every epoch has a new random order; documents of similar length share a batch.
    """
    pool_size = _SORTED_BATCHES * batch_size
    while True:
        order = torch.randperm(len(examples)).tolist()
        batches: list[list[_Example]] = []
        for start in range(0, len(order), pool_size):
            pool = sorted(
                (examples[number] for number in order[start : start + pool_size]),
                key=lambda example: len(example[0]),
            )
            batches += [pool[k : k + batch_size] for k in range(0, len(pool), batch_size)]
        for number in torch.randperm(len(batches)).tolist():
            ids, labels, weights = zip(*batches[number], strict=True)
            padded = pad_right(ids, FILLER_TOKEN), pad_right(labels, _IGNORED_LABEL)
            yield *padded, torch.tensor(weights, dtype=torch.float64)
