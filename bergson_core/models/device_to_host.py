"""Copies results from a GPU to the host's memory while the GPU computes the next ones.

A copy is queued behind the work that makes its tensors, and the next batch is queued behind the copy. The host waits
for a copy only once the batch after it has been started.
"""

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor


def overlap_copies(items: Iterable[tuple[Any, ...]]) -> Iterator[tuple[Any, ...]]:
    """Yields each of `items` with its tensors as NumPy arrays in the host's memory, in order.

    An item is yielded after `items` has made the one behind it. Values that are no tensors stay as they are.
    """
    pending: tuple[tuple[Any, ...], torch.cuda.Event | None] | None = None
    for item in items:
        started = _start_copies(item)
        if pending is not None:
            yield _finish_copies(*pending)
        pending = started
    if pending is not None:
        yield _finish_copies(*pending)


def _start_copies(item: tuple[Any, ...]) -> tuple[tuple[Any, ...], torch.cuda.Event | None]:
    """Returns the copies, and the event that says when they are there, where the GPU makes them."""
    copies = tuple(
        value.to("cpu", non_blocking=True) if isinstance(value, Tensor) else value for value in item
    )
    if not any(isinstance(value, Tensor) and value.is_cuda for value in item):
        return copies, None
    event = torch.cuda.Event()
    event.record()
    return copies, event


def _finish_copies(copies: tuple[Any, ...], event: torch.cuda.Event | None) -> tuple[Any, ...]:
    """Waits for the copies, and returns them as arrays."""
    if event is not None:
        event.synchronize()
    return tuple(value.numpy() if isinstance(value, Tensor) else value for value in copies)
