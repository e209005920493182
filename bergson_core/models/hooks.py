"""Hooks that capture the activations and output gradients of tracked modules, and do no arithmetic.

Legend: n samples, s positions, i input features, o output features.

Gradients are asked for at the outputs of tracked modules only. With frozen parameters, the backward pass therefore
computes the gradients of activations alone, and stops below the lowest tracked module.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from threading import Lock
from typing import Any, Final, cast

import torch
from torch import Tensor, nn

from bergson_core.errors import InvalidInput
from bergson_core.models.architectures import moe
from bergson_core.models.modules import TrackedModule, restore_sample_axis
from bergson_core.models.offloading import require_weights_in_memory

OnForward = Callable[[str, Tensor], Any]
"""(name, activations [n, s, i] or token ids [n, s]) → whatever `OnBackward` will need; nothing else is kept."""
OnBackward = Callable[[str, Any, Tensor], None]
"""(name, what `OnForward` returned, output gradients [n, s, o])."""
Forward = Callable[..., Tensor]


@contextmanager
def capture(
    model: nn.Module,
    modules: Mapping[str, TrackedModule],
    on_forward: OnForward,
    on_backward: OnBackward,
    *,
    by_position: bool = False,
    sequences_per_sample: int = 1,
) -> Iterator[None]:
    """Calls functions in each forward and backward pass of tracked modules while the context is open.

    Both are called twice for a module that is used twice in a pass, and with s = 0 for an expert that no token is
    routed to. Under gradient checkpointing, `on_forward` is called again in the recomputed forward pass, and
    `on_backward` once all the same. Nothing is left on the modules when the context closes.

    Args:
        model: The model.
        modules: The tracked modules, by name.
        on_forward: Called with the activations of a module when the module has run.
        on_backward: Called with the module's output gradients when they arrive.
        by_position: Whether s has to be the positions of the model's input for every module. Positions that an expert
            does not see are zeros then.
        sequences_per_sample: So many consecutive sequences of the model's input are one sample, whose positions are
            those of its sequences, one after the other.

    Raises:
        InvalidInput: During a pass, where features cannot be told apart by sample (or by position, with `by_position`);
            where a frozen module runs with gradients off although the model does not; and where what `on_forward`
            returned was changed in place.
    """
    tracker = _Tracker(on_forward, on_backward, by_position, sequences_per_sample)
    fused: dict[nn.Module, dict[str, str]] = {}
    with ExitStack() as handles:
        handles.enter_context(run_uncompiled)
        for entry in find_entry_modules(model):
            handles.callback(entry.register_forward_pre_hook(tracker.note_batch, with_kwargs=True).remove)
        for name, tracked in modules.items():
            if tracked.expert_map is not None:
                fused.setdefault(tracked.module, {})[tracked.expert_map] = name
                continue
            for module in (tracked.module, *tracked.tied_modules):
                hook = partial(tracker.linear, tracked)
                handles.callback(module.register_forward_hook(hook, with_kwargs=True).remove)
        for module, names in fused.items():
            require_weights_in_memory(module, f"tracking the fused experts of {next(iter(names.values()))!r}")
            handles.enter_context(_replace_forward(module, partial(tracker.experts, module, names)))
        yield


class _Tracker:
    """What the hooks of one capture share: the shape of the batch, and whether its pass has gradients."""

    def __init__(
        self, on_forward: OnForward, on_backward: OnBackward, by_position: bool, sequences: int
    ) -> None:
        self._on_forward, self._on_backward, self._by_position = on_forward, on_backward, by_position
        self._sequences = sequences  # of a sample
        self._batch: Sequence[int] = (1,)
        self._with_gradients = False

    def note_batch(self, _module: nn.Module, args: tuple, kwargs: dict) -> None:
        """The forward pre-hook of the modules that a pass may start from."""
        self._with_gradients = torch.is_grad_enabled()
        first = next((value for value in (*args, *kwargs.values()) if isinstance(value, Tensor)), None)
        if first is not None and first.dim() > 0:
            self._batch = first.shape

    def linear(
        self, tracked: TrackedModule, module: nn.Module, args: tuple, kwargs: dict, output: Tensor
    ) -> Tensor | None:
        """The forward hook of a Linear, a Conv1D or an Embedding, or of one head of it."""
        name = tracked.name
        if not self._has_gradients(name, module):
            return None
        features = self._group(name, args[0] if args else kwargs["input"])
        regroup = partial(self._group, name)
        if (part := tracked.part) is not None:
            features = part.take(features, "input")
            return self._watch(name, features, output, lambda grad: part.take(regroup(grad), "output"))
        if (padding := getattr(module, "padding_idx", None)) is not None:  # this entry is never trained
            return self._watch(name, features, output, partial(_group_and_zero, features == padding, regroup))
        return self._watch(name, features, output, regroup)

    def _group(self, name: str, features: Tensor) -> Tensor:
        """Returns features [n, s, .], by sample and position."""
        grouped = restore_sample_axis(features, self._batch, name)
        if self._by_position and tuple(grouped.shape[:2]) != tuple(self._batch[:2]):
            raise InvalidInput(
                f"module {name!r} sees features of shape {tuple(grouped.shape)} and the model an input of shape "
                f"{tuple(self._batch)}; rows of single tokens need one feature a position. Leave the module out with "
                "`modules`"
            )
        return grouped if self._sequences == 1 else grouped.unflatten(0, (-1, self._sequences)).flatten(1, 2)

    def experts(
        self, module: nn.Module, names: Mapping[str, str], untracked: Forward, *args: Any, **kwargs: Any
    ) -> Tensor:
        """The forward pass of fused experts, instead of `untracked`.

        `names` are the names of the tracked modules, by `TrackedModule.expert_map`.
        """
        if not self._has_gradients(next(iter(names.values())), module):
            return untracked(*args, **kwargs)

        def watch(
            expert_map: str, features: Tensor, output: Tensor, regroup: Callable[[Tensor], Tensor]
        ) -> Tensor:
            if expert_map not in names:
                return output
            return self._watch(names[expert_map], regroup(features), output, regroup)

        # Raises an error where the tokens cannot be told apart by sample.
        self._group(next(iter(names.values())), args[0] if args else kwargs["hidden_states"])
        samples = self._batch[0] // self._sequences
        group = partial(moe.group_by_sample, samples=samples, by_position=self._by_position)
        return moe.run_experts(module, watch, group, *args, **kwargs)

    def _has_gradients(self, name: str, module: nn.Module) -> bool:
        """Returns whether gradients will reach a module; raises an error where they should and will not."""
        if torch.is_grad_enabled():
            return True
        if self._with_gradients and not any(weight.requires_grad for weight in module.parameters()):
            raise InvalidInput(
                f"module {name!r} runs with gradients off inside a pass that has them, so that none would reach it: "
                "with gradient checkpointing, set use_reentrant=False or turn it off; where the model itself turns "
                "them off, leave the module out with `modules`"
            )
        return False

    def _watch(
        self, name: str, features: Tensor, output: Tensor, regroup: Callable[[Tensor], Tensor]
    ) -> Tensor:
        """Calls `on_forward`, and `on_backward` when the gradient of `output` arrives.

        `features` are grouped by sample already; `regroup` groups the gradients of `output`. What is returned is the
        output that the model has to go on with.
        """
        saved = self._on_forward(name, features.detach())
        version = _version(saved)
        is_lowest = not output.requires_grad
        if is_lowest:  # The clone is not a leaf, so that an in-place activation may follow.
            output = output.detach().requires_grad_().clone()

        def pass_on(grad: Tensor) -> None:
            if _version(saved) != version:
                raise InvalidInput(
                    f"the input of module {name!r} is changed in place after the module has run, so that its gradient "
                    "is lost; project the gradients (projection_dim), or leave the module out with `modules`"
                )
            self._on_backward(name, saved, regroup(grad))

        output.register_hook(pass_on)
        return output


def _group_and_zero(is_zero: Tensor, regroup: Callable[[Tensor], Tensor], gradients: Tensor) -> Tensor:
    """Groups output gradients by sample, and zeroes those of some positions."""
    return regroup(gradients).masked_fill(is_zero[..., None], 0)


def find_entry_modules(model: nn.Module) -> set[nn.Module]:
    """Returns the modules that a pass may start from: the model and its backbone, also those that are wrapped."""
    inner = unwrap_model(unwrap_compiled(model))
    return {model, unwrap_compiled(model), inner, getattr(inner, "base_model", inner)}


def unwrap_compiled(model: nn.Module) -> nn.Module:
    """Returns the model that torch.compile has wrapped, and any other model itself."""
    return cast(nn.Module, getattr(model, "_orig_mod", model))


def is_compiled(model: nn.Module) -> bool:
    """Returns whether torch.compile has compiled a model or a part of it, by wrapping or in place."""
    return any(
        hasattr(module, "_orig_mod")
        or getattr(module, "_compiled_call_impl", None) is not None
        or hasattr(vars(module).get("forward"), "_torchdynamo_orig_callable")
        for module in model.modules()
    )


class _Uncompiled:
    """Counts the contexts that keep compiled code from running; they may be closed in any order, by any thread."""

    def __init__(self) -> None:
        self._open_contexts = 0
        self._stance = ExitStack()
        self._lock = Lock()

    def __enter__(self) -> None:
        with self._lock:
            if self._open_contexts == 0:
                self._stance.enter_context(torch.compiler.set_stance("force_eager"))
            self._open_contexts += 1

    def __exit__(self, *exception: object) -> None:
        with self._lock:
            self._open_contexts -= 1
            if self._open_contexts == 0:
                self._stance.close()


run_uncompiled: Final = _Uncompiled()
"""A context in which code that torch.compile has compiled runs as it was written: compiled code calls no hooks."""


def unwrap_model(model: nn.Module) -> nn.Module:
    """Returns the model that a PEFT model wraps, and any other model itself."""
    inner = getattr(model, "get_base_model", None)
    return cast(nn.Module, inner()) if callable(inner) else model


def _version(saved: Any) -> int:
    """Returns how often a tensor was changed in place, which torch tells by this attribute alone."""
    return saved._version if isinstance(saved, Tensor) and not saved.is_inference() else 0


@contextmanager
def _replace_forward(module: nn.Module, forward: Forward) -> Iterator[None]:
    """Makes `module` run `forward(original_forward, *args, **kwargs)` while the context is open."""
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
    """Turns off all parameters' gradients, dropout and compiled code while the context is open."""
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    training = [module for module in model.modules() if module.training]
    for parameter in trainable:
        parameter.requires_grad_(False)
    for module in training:
        module.training = False
    try:
        with run_uncompiled:
            yield
    finally:
        for parameter in trainable:
            parameter.requires_grad_(True)
        for module in training:
            module.training = True
