"""`CheckpointWeights`: the weights of several checkpoints, of which one at a time is in the model.

The weights lie in files that have no name any more and are mapped into memory, so that the kernel keeps as much of them
in memory as there is room for, and frees it where there is none. The model's parameters point into these files on a
CPU, where exchanging the weights copies nothing. On a GPU they are copied there.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Final

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from bergson_core.utils.scratch_directories import scratch_directory

_FILE_NAME: Final = "weights.safetensors"


class CheckpointWeights:
    """The weights of the checkpoints of one training run, the earliest first; the last one is in the model at rest.

    For use by one thread.

    Args:
        model: The model whose parameters and buffers are exchanged.
        weights: For each checkpoint what `store_weights` has returned.
        revisions: For each checkpoint the commit of the hub's repository that it was loaded from, or None.
    """

    def __init__(
        self, model: nn.Module, weights: Sequence[Mapping[str, Tensor]], revisions: Sequence[str | None]
    ) -> None:
        self._model, self._weights, self.revisions = model, tuple(weights), tuple(revisions)
        self._loaded: dict[str, Tensor] = {}
        self._load(len(self) - 1)

    def __len__(self) -> int:
        """Returns the number of checkpoints."""
        return len(self._weights)

    @contextmanager
    def use(self, number: int) -> Iterator[None]:
        """Puts the weights of a checkpoint into the model while the context is open."""
        with self.in_turn([number]) as numbers:
            next(numbers)
            yield

    @contextmanager
    def in_turn(self, numbers: Sequence[int]) -> Iterator[Iterator[int]]:
        """Yields an iterator over checkpoints that puts the weights of each into the model before it yields its number.

        When the context closes, the model has the weights of the last checkpoint again.
        """
        try:
            yield self._load_each(numbers)
        finally:
            self._load(len(self) - 1)

    def _load_each(self, numbers: Sequence[int]) -> Iterator[int]:
        for number in numbers:
            self._load(number)
            yield number

    @torch.no_grad()
    def _load(self, number: int) -> None:
        weights = self._weights[number]
        for name, tensor in named_tensors(self._model).items():
            stored = weights[name]
            if self._loaded.get(name) is stored:
                continue
            if tensor.device == stored.device:
                tensor.data = stored
            else:
                tensor.copy_(stored)
            self._loaded[name] = stored


def named_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Returns the parameters and buffers of a model by name, those that have several names once."""
    return dict(model.named_parameters()) | dict(model.named_buffers())


def store_weights(model: nn.Module, before: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Returns the weights of a model, mapped from a file that is gone when nobody uses them any more.

    Args:
        model: The model.
        before: What was returned for the checkpoint before. Weights that are the same are not stored again, such as
            those below adapters.

    Raises:
        DiskFull: The disk of the temporary files is full.
    """
    tensors = {name: tensor.detach() for name, tensor in named_tensors(model).items()}
    stored, new = {}, {}
    for name, tensor in tensors.items():
        if name in before and torch.equal(before[name], tensor.to(before[name].device)):
            stored[name] = before[name]
        else:
            new[name] = tensor.cpu().contiguous().clone()
    if not new:
        return stored
    with scratch_directory() as directory:
        save_file(new, directory / _FILE_NAME)
        new.clear()
        # The mapping outlives the file.
        return stored | load_file(directory / _FILE_NAME)
