"""Finds how many tokens a batch may have, from the device's free memory and what one document needs of it."""

import resource
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor

from bergson_core.models.forward_backward import MAX_LOGITS_IN_MEMORY, forward_backward
from bergson_core.models.hooks import capture, freeze
from bergson_core.models.language_model import LanguageModel, context_limit
from bergson_core.models.modules import TrackedModule
from bergson_core.tokens.batching import BUDGET_TOKENS, iter_batches
from bergson_core.tokens.tokenization import Tokens

MAX_BATCH_TOKENS: Final = {"cpu": 1024, "cuda": 2**15}
"""Tokens of a batch, by type of device, above which batches get no faster."""
MAX_UNSTATED_TOKENS: Final = 2**15
"""Longest text for a model that states no context, however much memory there is: a pass must not take minutes."""
_MEASURED_TOKENS: Final = (64, 128, 256)
"""Lengths of the documents that the memory of longer ones is extrapolated from."""
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
    longest, since attention takes more memory per token the longer a document is.

    Args:
        model: The model, on its device.
        modules: The tracked modules, by name.
        longest_tokens: The tokens of the longest document.
        free_bytes: The free memory, in bytes; by default it is measured.

    Returns:
        A power of two, at most `MAX_BATCH_TOKENS`. A document that is longer is a batch of its own.
    """
    longest_tokens = max(2, longest_tokens)
    saved_bytes = _count_saved_bytes(model, modules, longest_tokens)
    savable_bytes = _savable_bytes(model, free_bytes)
    fitting = max(1, int(savable_bytes * longest_tokens / max(1, saved_bytes)))
    return min(MAX_BATCH_TOKENS.get(model.device.type, BUDGET_TOKENS), 2 ** (fitting.bit_length() - 1))


def find_token_limit(
    model: LanguageModel,
    modules: Mapping[str, TrackedModule],
    max_tokens: int | None = None,
    free_bytes: int | None = None,
) -> int:
    """Returns how many tokens a text may have: `max_tokens`, or all that the model's context has.

    For a model that states no context, such as BLOOM or Mamba, it is the length of which a pass still fits into the
    memory of its device. Three short documents are run to find it, since the bytes that are saved for the backward pass
    grow with the tokens, and in attention with their square.

    Args:
        model: The model, on its device.
        modules: The tracked modules, by name.
        max_tokens: The largest number of tokens if the caller states one.
        free_bytes: The free memory, in bytes; by default it is measured.

    Returns:
        The limit. One that was measured is a power of two, at most `MAX_UNSTATED_TOKENS`.

    Raises:
        InvalidInput: `max_tokens` is more than the model takes.
    """
    stated = context_limit(model, max_tokens)
    if stated is not None:
        return stated
    saved_bytes = [_count_saved_bytes(model, modules, tokens) for tokens in _MEASURED_TOKENS]
    curve = np.polynomial.Polynomial.fit(_MEASURED_TOKENS, saved_bytes, deg=2)
    savable_bytes, limit = _savable_bytes(model, free_bytes), MAX_UNSTATED_TOKENS
    while limit > 2 and curve(limit) > savable_bytes:
        limit //= 2
    return limit


def _savable_bytes(model: LanguageModel, free_bytes: int | None) -> float:
    """Returns how many bytes may be saved for a backward pass, so that its peak and the logits fit into memory."""
    if free_bytes is None:
        free_bytes = min(free_memory_bytes(device) for device in model.devices)
    float32_bytes = 4
    logits_bytes = float32_bytes * _PEAK_BYTES_PER_SAVED_BYTE * MAX_LOGITS_IN_MEMORY
    return (_FREE_MEMORY_SHARE * free_bytes - logits_bytes) / _PEAK_BYTES_PER_SAVED_BYTE


def _count_saved_bytes(model: LanguageModel, modules: Mapping[str, TrackedModule], tokens: int) -> int:
    """Runs a document, and returns the bytes that are saved of it for the backward pass, the weights not counted."""
    document = Tokens.labelled_from(np.zeros(tokens, dtype=np.int64), 1)
    (batch,) = iter_batches([document], tokens, model.device)
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
    kernel calls available, or what the limits of the control group or of the process leave where this is less.
    """
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    lines = Path("/proc/meminfo").read_text().splitlines()
    free = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable"))
    address_space, _ = resource.getrlimit(resource.RLIMIT_AS)
    if address_space != resource.RLIM_INFINITY:
        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        free = max(0, min(free, address_space - used))
    cgroup = Path("/sys/fs/cgroup")
    try:
        limit = int((cgroup / "memory.max").read_text()) - int((cgroup / "memory.current").read_text())
    except (OSError, ValueError):  # there is no cgroup, or its limit is "max"
        return free
    return max(0, min(free, limit))
