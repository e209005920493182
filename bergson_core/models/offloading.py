"""Models whose parts lie on several devices, in the host's memory or on the disk: `device_map` of transformers.

accelerate moves the inputs of a module to where the module runs. A weight that is offloaded is loaded for each forward
pass of its module and dropped after it. Autograd would keep it for the backward pass, until the whole model lies in
memory. Here autograd keeps where the weight came from instead, and loads it again when it is needed.
"""

import json
import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from typing import Any, Final, get_args

import torch
from pydantic import TypeAdapter
from torch import Tensor, nn

from bergson_core.errors import InvalidInput
from bergson_core.schemas.build import DeviceMap, DeviceMapName
from bergson_core.schemas.validation.bounded_errors import short_repr

DEVICE_MAP_VARIABLE: Final = "BERGSON_DEVICE_MAP"
_DEVICE_MAP: Final[TypeAdapter[DeviceMap]] = TypeAdapter(DeviceMap)


def default_device_map() -> DeviceMap | None:
    """Returns what the environment variable BERGSON_DEVICE_MAP says, a name or a JSON object; None where it is unset.

    Raises:
        InvalidInput: It says something else.
    """
    value = os.environ.get(DEVICE_MAP_VARIABLE)
    return parse_device_map(value, DEVICE_MAP_VARIABLE) if value else None


def parse_device_map(value: object, name: str = "device_map") -> DeviceMap:
    """Returns a device map, which may be the text of a JSON object.

    Args:
        value: The map.
        name: What the value is called in an error.

    Raises:
        InvalidInput: It is no device map, or accelerate is not installed.
    """
    try:
        if isinstance(value, str) and value.startswith("{"):
            value = json.loads(value)
        device_map = _DEVICE_MAP.validate_python(value)
    except ValueError as error:
        raise InvalidInput(
            f"{name}: expected {', '.join(get_args(DeviceMapName))}, or an object with the number of a GPU, cpu or "
            f'disk for each module such as {{"model.layers": 0, "lm_head": "cpu"}}, got {short_repr(value)}'
        ) from error
    if find_spec("accelerate") is None:
        raise InvalidInput(
            f"{name}: spreading a model needs accelerate: pip install 'bergson-service[large]'"
        )
    return device_map


def find_device(model: nn.Module) -> torch.device:
    """Returns the device that a model takes its token ids on: that of its weights, unless it is offloaded."""
    for hook in _hooks_of(model):
        if (device := getattr(hook, "execution_device", None)) is not None:
            return torch.device(device)
    return next((parameter.device for parameter in model.parameters()), torch.device("cpu"))


def find_devices(model: nn.Module) -> set[torch.device]:
    """Returns all devices that parts of a model run on."""
    weights = {parameter.device for parameter in model.parameters() if not parameter.is_meta}
    return weights | {find_device(model)}


def require_weights_in_memory(module: nn.Module, purpose: str) -> None:
    """Raises `InvalidInput` where weights are offloaded, which `purpose` needs in memory."""
    if any(parameter.is_meta for parameter in module.parameters()):
        raise InvalidInput(
            f"{purpose} needs all weights in memory, but some are offloaded to the host or the disk: expected a device "
            "map that keeps them on GPUs"
        )


@contextmanager
def reload_in_backward(model: nn.Module) -> Iterator[None]:
    """Keeps offloaded weights out of what autograd saves in forward passes while the context is open.

    The backward pass loads them again, one module at a time. It does nothing for a model that is not offloaded.
    """
    offloaded = [
        (module, hook)
        for module in (model.modules() if hasattr(model, "hf_device_map") else ())
        for hook in _hooks_of(module)
        if getattr(hook, "offload", False)
    ]
    if not offloaded:
        yield
        return
    loaded = _LoadedWeights()
    with ExitStack() as stack:
        for module, hook in offloaded:
            stack.enter_context(loaded.note(module, hook))
        stack.enter_context(torch.autograd.graph.saved_tensors_hooks(loaded.pack, _unpack))
        yield


def _hooks_of(module: nn.Module) -> tuple[Any, ...]:
    """Returns the hooks by which accelerate has changed a module's forward pass."""
    hook = getattr(module, "_hf_hook", None)
    if hook is None:
        return ()
    return tuple(getattr(hook, "hooks", (hook,)))


@dataclass(frozen=True)
class _SavedWeight:
    """A weight, or a view of one, that is loaded again when it is needed."""

    load: Callable[[], Tensor]
    size: torch.Size
    stride: tuple[int, ...]
    offset: int


class _LoadedWeights:
    """The offloaded weights that are in memory at a moment, by the address of their numbers."""

    def __init__(self) -> None:
        self._loads: dict[int, Callable[[], Tensor]] = {}

    @contextmanager
    def note(self, module: nn.Module, hook: Any) -> Iterator[None]:
        """Notes the weights of a module from when accelerate's hook has loaded them until it drops them."""
        load, drop = hook.pre_forward, hook.post_forward

        def weights() -> Iterator[tuple[str, nn.Parameter]]:
            return module.named_parameters(recurse=hook.place_submodules)

        def pre_forward(*args: Any, **kwargs: Any) -> Any:
            inputs = load(*args, **kwargs)
            for name, weight in weights():
                self._loads[weight.untyped_storage().data_ptr()] = partial(
                    _load_weight, hook, name, weight.dtype, weight.device
                )
            return inputs

        def post_forward(*args: Any, **kwargs: Any) -> Any:
            for _, weight in weights():
                self._loads.pop(weight.untyped_storage().data_ptr(), None)
            return drop(*args, **kwargs)

        hook.pre_forward, hook.post_forward = pre_forward, post_forward
        try:
            yield
        finally:
            del hook.pre_forward, hook.post_forward

    def pack(self, tensor: Tensor) -> Tensor | _SavedWeight:
        """Returns what autograd keeps in place of a tensor."""
        load = None if tensor.is_meta else self._loads.get(tensor.untyped_storage().data_ptr())
        if load is None:
            return tensor
        return _SavedWeight(load, tensor.size(), tensor.stride(), int(tensor.storage_offset()))


def _load_weight(hook: Any, name: str, dtype: torch.dtype, device: torch.device) -> Tensor:
    return hook.weights_map[name].to(device, dtype)


def _unpack(packed: Tensor | _SavedWeight) -> Tensor:
    if isinstance(packed, Tensor):
        return packed
    return packed.load().contiguous().as_strided(packed.size, packed.stride, packed.offset)
