"""Captures what the layers see, and does no maths.

Gradients are asked for at the outputs of tracked layers only: with frozen parameters the backward pass computes
activation gradients alone, and stops below the lowest tracked layer.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from bergson_core.layers import Layer, samples_first

Keep = Callable[[str, Tensor], Any]
"""(name, activations [n, s, i]) → whatever the backward side will need; the activations are not kept otherwise."""
Arrive = Callable[[str, Any, Tensor], None]
"""(name, what Keep returned, output gradients [n, s, o])."""


@contextmanager
def capture(model: nn.Module, layers: Mapping[str, Layer], keep: Keep, arrive: Arrive) -> Iterator[None]:
    """While open, each forward pass of a layer calls `keep`, and each backward pass `arrive`.

    A layer that is used twice in one pass calls both twice. Nothing is written onto the modules.
    """
    samples = [1]

    def note_batch(_module: nn.Module, args: tuple, kwargs: dict) -> None:
        first = next((value for value in (*args, *kwargs.values()) if isinstance(value, Tensor)), None)
        if first is not None and first.dim() > 0:
            samples[0] = first.shape[0]

    def hook_of(name: str) -> Callable[..., Tensor | None]:
        def hook(_module: nn.Module, args: tuple, kwargs: dict, output: Tensor) -> Tensor | None:
            if not torch.is_grad_enabled():
                return None
            n = samples[0]
            features = args[0] if args else kwargs["input"]
            kept = keep(name, samples_first(features.detach(), n, name))
            lowest = not output.requires_grad
            if lowest:  # the clone is no leaf, so that an in-place activation may follow
                output = output.detach().requires_grad_().clone()
            output.register_hook(lambda grad: arrive(name, kept, samples_first(grad, n, name)))
            return output if lowest else None

        return hook

    with ExitStack() as handles:
        for root in {model, getattr(model, "base_model", model)}:
            handles.callback(root.register_forward_pre_hook(note_batch, with_kwargs=True).remove)
        for name, layer in layers.items():
            handle = layer.module.register_forward_hook(hook_of(name), with_kwargs=True)
            handles.callback(handle.remove)
        yield


@contextmanager
def frozen(model: nn.Module) -> Iterator[None]:
    """While open, no parameter asks for a gradient and dropout is off; afterwards all is as it was."""
    asked = [parameter for parameter in model.parameters() if parameter.requires_grad]
    training = [module for module in model.modules() if module.training]
    for parameter in asked:
        parameter.requires_grad_(False)
    for module in training:
        module.training = False
    try:
        yield
    finally:
        for parameter in asked:
            parameter.requires_grad_(True)
        for module in training:
            module.training = True
