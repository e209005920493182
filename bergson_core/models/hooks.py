"""Captures what the layers see, and does no maths.

Gradients are asked for at the outputs of tracked layers only: with frozen parameters the backward pass computes
activation gradients alone, and stops below the lowest tracked layer.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn

from bergson_core.errors import InvalidInput
from bergson_core.models import moe
from bergson_core.models.modules import TrackedModule, restore_sample_axis

OnForward = Callable[[str, Tensor], Any]
"""(name, activations [n, s, i], or token ids [n, s]) → whatever the backward side will need; nothing else is kept."""
OnBackward = Callable[[str, Any, Tensor], None]
"""(name, what Keep returned, output gradients [n, s, o])."""
Forward = Callable[..., Tensor]


@contextmanager
def capture(
    model: nn.Module,
    modules: Mapping[str, TrackedModule],
    on_forward: OnForward,
    on_backward: OnBackward,
    *,
    by_position: bool = False,
) -> Iterator[None]:
    """While open, each forward pass of a layer calls `keep`, and each backward pass `arrive`.

    A layer that is used twice in one pass calls both twice; an expert that no token is routed to, with s = 0. Under
    gradient checkpointing `keep` is called again in the recomputed forward pass, `arrive` once all the same. Nothing
    is left on the modules. With `by_position`, s are the positions of the model's input for every layer: those that
    an expert does not see are zeros.
    Raises `InvalidInput`, during a pass, where features cannot be told apart by sample (or, with `by_position`, by
    position), where a frozen layer runs with gradients off although the model does not, and where what `keep`
    returned was changed in place.
    """
    tracker = _Tracker(on_forward, on_backward, by_position)
    fused: dict[nn.Module, dict[str, str]] = {}
    with ExitStack() as handles:
        for root in find_entry_modules(model):
            handles.callback(root.register_forward_pre_hook(tracker.note_batch, with_kwargs=True).remove)
        for name, layer in modules.items():
            if layer.part is not None:
                fused.setdefault(layer.module, {})[layer.part] = name
                continue
            for module in (layer.module, *layer.twins):
                hook = partial(tracker.linear, name)
                handles.callback(module.register_forward_hook(hook, with_kwargs=True).remove)
        for module, names in fused.items():
            handles.enter_context(_forward_replaced(module, partial(tracker.experts, module, names)))
        yield


class _Tracker:
    """What the hooks of one capture share: the shape of the batch, and whether its pass has gradients."""

    def __init__(self, keep: OnForward, arrive: OnBackward, by_position: bool) -> None:
        self._keep, self._arrive, self._by_position = keep, arrive, by_position
        self._batch: Sequence[int] = (1,)
        self._with_gradients = False

    def note_batch(self, _module: nn.Module, args: tuple, kwargs: dict) -> None:
        self._with_gradients = torch.is_grad_enabled()
        first = next((value for value in (*args, *kwargs.values()) if isinstance(value, Tensor)), None)
        if first is not None and first.dim() > 0:
            self._batch = first.shape

    def linear(
        self, name: str, module: nn.Module, args: tuple, kwargs: dict, output: Tensor
    ) -> Tensor | None:
        """The forward hook of a Linear, a Conv1D or an Embedding."""
        if not self._tracks(name, module):
            return None
        features = self._grouped(name, args[0] if args else kwargs["input"])
        regroup = partial(self._grouped, name)
        if (padding := getattr(module, "padding_idx", None)) is not None:  # an entry that is never trained
            return self._watch(name, features, output, partial(_zeroed, features == padding, regroup))
        return self._watch(name, features, output, regroup)

    def _grouped(self, name: str, features: Tensor) -> Tensor:
        grouped = restore_sample_axis(features, self._batch, name)
        if self._by_position and tuple(grouped.shape[:2]) != tuple(self._batch[:2]):
            raise InvalidInput(
                f"layer {name!r} sees features of shape {tuple(grouped.shape)} and the model an input of shape "
                f"{tuple(self._batch)}; rows of single tokens need one feature a position. Leave the layer out with "
                "target_modules"
            )
        return grouped

    def experts(
        self, module: nn.Module, names: Mapping[str, str], untracked: Forward, *args: Any, **kwargs: Any
    ) -> Tensor:
        """The forward pass of fused experts, instead of `untracked`; `names` are the layers of tracked parts."""
        if not self._tracks(next(iter(names.values())), module):
            return untracked(*args, **kwargs)

        def watch(part: str, features: Tensor, output: Tensor, regroup: Callable[[Tensor], Tensor]) -> Tensor:
            return self._watch(names[part], regroup(features), output, regroup) if part in names else output

        self._grouped(next(iter(names.values())), args[0] if args else kwargs["hidden_states"])
        group = partial(moe.group_by_sample, samples=self._batch[0], by_position=self._by_position)
        return moe.run_experts(module, watch, group, *args, **kwargs)

    def _tracks(self, name: str, module: nn.Module) -> bool:
        if torch.is_grad_enabled():
            return True
        if self._with_gradients and not any(weight.requires_grad for weight in module.parameters()):
            raise InvalidInput(
                f"layer {name!r} runs with gradients off inside a pass that has them, so that none would reach it: "
                "with gradient checkpointing, set use_reentrant=False or turn it off; where the model itself turns "
                "them off, leave the layer out with target_modules"
            )
        return False

    def _watch(
        self, name: str, features: Tensor, output: Tensor, regroup: Callable[[Tensor], Tensor]
    ) -> Tensor:
        """`features` are grouped by sample already, the gradients of `output` are by `regroup`."""
        kept = self._keep(name, features.detach())
        version = _version(kept)
        lowest = not output.requires_grad
        if lowest:  # the clone is no leaf, so that an in-place activation may follow
            output = output.detach().requires_grad_().clone()

        def arrived(grad: Tensor) -> None:
            if _version(kept) != version:
                raise InvalidInput(
                    f"the input of layer {name!r} is changed in place after the layer has run, so that its gradient "
                    "is lost; project the gradients (projection_dim), or leave it out with target_modules"
                )
            self._arrive(name, kept, regroup(grad))

        output.register_hook(arrived)
        return output


def _zeroed(where: Tensor, regroup: Callable[[Tensor], Tensor], rows: Tensor) -> Tensor:
    return regroup(rows).masked_fill(where[..., None], 0)


def find_entry_modules(model: nn.Module) -> set[nn.Module]:
    """The modules that a pass may start from: the model, and its backbone, also below PEFT's wrapper."""
    inner = unwrap_model(model)
    return {model, inner, getattr(inner, "base_model", inner)}


def unwrap_model(model: nn.Module) -> nn.Module:
    """The model that a PEFT model wraps, any other as it is."""
    inner = getattr(model, "get_base_model", None)
    return cast(nn.Module, inner()) if callable(inner) else model


def _version(kept: Any) -> int:
    """How often a tensor was changed in place."""
    return kept._version if isinstance(kept, Tensor) and not kept.is_inference() else 0


@contextmanager
def _forward_replaced(module: nn.Module, forward: Forward) -> Iterator[None]:
    """While open, `module` runs `forward(what it ran before, *args, **kwargs)`."""
    own = vars(module).get("forward")
    module.forward = partial(forward, module.forward)
    try:
        yield
    finally:
        if own is None:
            del module.forward
        else:
            module.forward = own


@contextmanager
def freeze(model: nn.Module) -> Iterator[None]:
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
