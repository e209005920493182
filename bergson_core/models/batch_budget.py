"""How many tokens a batch may have, from the memory that the device has and what one document needs of it."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor

from bergson_core.data.batching import BUDGET_TOKENS, Tokens, iter_batches
from bergson_core.models.forward_backward import MAX_LOGITS_IN_MEMORY, forward_backward
from bergson_core.models.hooks import capture, freeze
from bergson_core.models.language_model import LanguageModel
from bergson_core.models.modules import TrackedModule

MAX_BATCH_TOKENS: Final = {"cpu": BUDGET_TOKENS, "cuda": 2**15}
"""Beyond these a batch gets no faster."""
_SHARE: Final = 0.5
"""Of the free memory that a batch may take: allocators waste some, and other processes come and go."""
_TRANSIENT: Final = 2
"""Bytes in use at the peak for each byte that waits for the backward pass."""


def find_batch_budget(
    model: LanguageModel,
    modules: Mapping[str, TrackedModule],
    longest_tokens: int,
    free_bytes: int | None = None,
) -> int:
    """Tokens of a batch, padding included, that fit into the free memory of the model's device: a power of two.

    One document of `longest` tokens is run, and what is kept of it for the backward pass is counted; attention takes
    more memory a token the longer a document is. At most `MOST_TOKENS`. Documents that are longer than the budget are
    batches of their own.
    """
    longest_tokens = max(2, longest_tokens)
    (batch,) = iter_batches(
        [Tokens.labelled_from(np.zeros(longest_tokens, dtype=np.int64), 1)], longest_tokens, model.device
    )
    sizes: dict[int, int] = {}
    weights = {parameter.untyped_storage().data_ptr() for parameter in model.model.parameters()}

    def count(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            sizes[storage.data_ptr()] = storage.nbytes()
        return tensor

    def keep(_name: str, activations: Tensor) -> Tensor:
        return count(activations)

    def arrive(_name: str, _kept: Any, _gradients: Tensor) -> None:
        pass

    with (
        freeze(model.model),
        torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor),
        capture(model.model, modules, keep, arrive),
    ):
        forward_backward(model.for_tracking(modules.values()), batch)
    free = _free_bytes(model.device) if free_bytes is None else free_bytes
    room = _SHARE * free - 4 * _TRANSIENT * MAX_LOGITS_IN_MEMORY
    fitting = max(1, int(room * longest_tokens / (_TRANSIENT * max(1, sum(sizes.values())))))
    return min(MAX_BATCH_TOKENS.get(model.device.type, BUDGET_TOKENS), 2 ** (fitting.bit_length() - 1))


def _free_bytes(device: torch.device) -> int:
    """Memory that can still be had: on a GPU with what torch holds unused, on the CPU below the cgroup's limit."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    lines = Path("/proc/meminfo").read_text().splitlines()
    free = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable"))
    group = Path("/sys/fs/cgroup")
    try:
        limit = int((group / "memory.max").read_text()) - int((group / "memory.current").read_text())
    except (OSError, ValueError):  # no cgroup, or "max"
        return free
    return max(0, min(free, limit))
