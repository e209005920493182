"""Rows leave the device while it computes the next ones.

A copy from a GPU is queued behind the work that makes its tensors, and the next batch is queued behind the copy: the
host only waits for a copy once the batch after it has been started.
"""

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor


def overlap_copies(items: Iterable[tuple[Any, ...]]) -> Iterator[tuple[Any, ...]]:
    """`items` with their tensors as NumPy arrays in the host's memory, each after the one behind it was made."""
    waiting: tuple[tuple[Any, ...], torch.cuda.Event | None] | None = None
    for item in items:
        started = _start(item)
        if waiting is not None:
            yield _finish(*waiting)
        waiting = started
    if waiting is not None:
        yield _finish(*waiting)


def _start(item: tuple[Any, ...]) -> tuple[tuple[Any, ...], torch.cuda.Event | None]:
    copies = tuple(one.to("cpu", non_blocking=True) if isinstance(one, Tensor) else one for one in item)
    if not any(isinstance(one, Tensor) and one.is_cuda for one in item):
        return copies, None
    event = torch.cuda.Event()
    event.record()
    return copies, event


def _finish(copies: tuple[Any, ...], event: torch.cuda.Event | None) -> tuple[Any, ...]:
    if event is not None:
        event.synchronize()
    return tuple(one.numpy() if isinstance(one, Tensor) else one for one in copies)
