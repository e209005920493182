"""Trains a causal language model on token rows: AdamW, as plain as it can be, the same for the same seed.

For the demo's model, and for the many short runs that `retraining` compares. Each document is one row, closed with the
end-of-text token, padded on the right; the loss is the mean over its labelled tokens and that one.

Legend: n rows, s positions.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from bergson_core.data.batching import Tokens
from bergson_core.schemas.training import TrainingProgress, TrainingSchedule

FILLER: Final = 0
"""Any token fills a row up: it lies to the right, where causal attention does not look."""
_IGNORED: Final = -100  # the label that cross_entropy leaves out


def train(
    model: nn.Module,
    documents: Sequence[Tokens],
    end: int | None,
    schedule: TrainingSchedule,
    progress: TrainingProgress | None = None,
) -> int:
    """Trains all weights of `model` on `documents`, each closed with the token `end` if any; returns the steps taken.

    Rows and their order are drawn by torch's generator: open `reproducible` around it.
    """
    rows = [_row(one, end) for one in documents]
    steps = schedule.steps(len(rows))
    optimizer = torch.optim.AdamW(
        model.parameters(),
        schedule.learning_rate,
        (0.9, 0.95),
        weight_decay=schedule.weight_decay,
        fused=True,
    )
    rising = max(1, round(schedule.warmup * steps))
    falling = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min((step + 1) / rising, (steps - step) / max(1, steps - rising))
    )
    model.train()
    for step, (ids, labels) in zip(range(1, steps + 1), _batches(rows, schedule.batch_size), strict=False):
        logits = model(input_ids=ids, use_cache=False).logits
        loss = cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), ignore_index=_IGNORED)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        falling.step()
        if progress is not None:
            progress(step, steps, f"loss {loss.item():.2f}")
    model.eval()
    return steps


def pad(rows: Sequence[Sequence[int]], filler: int) -> Tensor:
    """Rows of different length as one tensor [n, s], filled up on the right."""
    longest = max(map(len, rows))
    return torch.tensor([[*row, *[filler] * (longest - len(row))] for row in rows])


@contextmanager
def reproducible(seed: int, threads: int) -> Iterator[None]:
    """Seeds torch and fixes its number of threads; both are afterwards as they were."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            yield
    finally:
        torch.set_num_threads(before)


def _row(document: Tokens, end: int | None) -> tuple[list[int], list[int]]:
    """(token ids, labels) of a document."""
    ids, labels = document.ids.tolist(), np.where(document.labels, document.ids, _IGNORED).tolist()
    return (ids, labels) if end is None else ([*ids, end], [*labels, end])


def _batches(rows: list[tuple[list[int], list[int]]], size: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Token ids and labels [n, s] without end: every epoch in a new order, rows of similar length together."""

    def length(row: tuple[Any, Any]) -> int:
        return len(row[0])

    while True:
        order = torch.randperm(len(rows)).tolist()
        batches: list[list[tuple[list[int], list[int]]]] = []
        for start in range(0, len(order), 8 * size):
            pool = sorted((rows[k] for k in order[start : start + 8 * size]), key=length)
            batches += [pool[k : k + size] for k in range(0, len(pool), size)]
        for number in torch.randperm(len(batches)).tolist():
            ids, labels = zip(*batches[number], strict=True)
            yield pad(ids, FILLER), pad(labels, _IGNORED)
