"""Finds how many tokens a batch may have, from the device's free memory and what one document needs of it."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor

from bergson_core.data.batching import BUDGET_TOKENS, Batch, Tokens, iter_batches
from bergson_core.models.forward_backward import MAX_LOGITS_IN_MEMORY, forward_backward
from bergson_core.models.hooks import capture, freeze
from bergson_core.models.language_model import LanguageModel
from bergson_core.models.modules import TrackedModule

MAX_BATCH_TOKENS: Final = {"cpu": BUDGET_TOKENS, "cuda": 2**15}
"""Tokens of a batch, by type of device, above which batches get no faster."""
_FREE_MEMORY_SHARE: Final = 0.5
"""Share of the free memory that a batch may take: allocators waste some, and other processes come and go."""
_PEAK_BYTES_PER_SAVED_BYTE: Final = 2
"""Bytes in use at the peak for each byte that is saved for the backward pass."""


def find_batch_budget(
    model: LanguageModel,
    modules: Mapping[str, TrackedModule],
    longest_tokens: int,
    free_bytes: int | None = None,
) -> int:
    """Returns how many tokens of a batch, padding included, fit into the free memory of the model's device.

    One document is run, and the bytes that are saved of it for the backward pass are counted. It is as long as the
    longest, since attention takes more memory a token the longer a document is.

    Args:
        model: The model, on its device.
        modules: The tracked modules, by name.
        longest_tokens: The tokens of the longest document.
        free_bytes: The free memory, in bytes; by default it is measured.

    Returns:
        A power of two, at most `MAX_BATCH_TOKENS`. A document that is longer is a batch of its own.
    """
    longest_tokens = max(2, longest_tokens)
    document = Tokens.labelled_from(np.zeros(longest_tokens, dtype=np.int64), 1)
    (batch,) = iter_batches([document], longest_tokens, model.device)
    saved_bytes = _count_saved_bytes(model, modules, batch)
    if free_bytes is None:
        free_bytes = free_memory_bytes(model.device)
    float32_bytes = 4
    logits_bytes = float32_bytes * _PEAK_BYTES_PER_SAVED_BYTE * MAX_LOGITS_IN_MEMORY
    batch_bytes = _FREE_MEMORY_SHARE * free_bytes - logits_bytes
    fitting = max(1, int(batch_bytes * longest_tokens / (_PEAK_BYTES_PER_SAVED_BYTE * max(1, saved_bytes))))
    return min(MAX_BATCH_TOKENS.get(model.device.type, BUDGET_TOKENS), 2 ** (fitting.bit_length() - 1))


def _count_saved_bytes(model: LanguageModel, modules: Mapping[str, TrackedModule], batch: Batch) -> int:
    """Runs a batch, and returns the bytes that are saved of it for the backward pass, the weights not counted."""
    bytes_by_address: dict[int, int] = {}
    weight_addresses = {parameter.untyped_storage().data_ptr() for parameter in model.model.parameters()}

    def count(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weight_addresses:
            bytes_by_address[storage.data_ptr()] = storage.nbytes()
        return tensor

    def on_forward(_name: str, activations: Tensor) -> Tensor:
        return count(activations)

    def on_backward(_name: str, _saved: Any, _gradients: Tensor) -> None:
        pass

    with (
        freeze(model.model),
        torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor),
        capture(model.model, modules, on_forward, on_backward),
    ):
        forward_backward(model.for_tracking(modules.values()), batch)
    return sum(bytes_by_address.values())


def free_memory_bytes(device: torch.device) -> int:
    """Returns the memory of a device that a batch may still take, in bytes.

    On a GPU, memory that torch has reserved and does not use counts as free. On the CPU, it is the memory that the
    kernel calls available, or what the limit of the control group leaves where this is less.
    """
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    lines = Path("/proc/meminfo").read_text().splitlines()
    free = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable"))
    cgroup = Path("/sys/fs/cgroup")
    try:
        limit = int((cgroup / "memory.max").read_text()) - int((cgroup / "memory.current").read_text())
    except (OSError, ValueError):  # there is no cgroup, or its limit is "max"
        return free
    return max(0, min(free, limit))
