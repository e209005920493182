"""Finds the modules of a model that can be tracked, and gives their features one shape.

Legend: n samples, s positions, i input features (of an embedding, its entries), o output features.

A tracked module computes y = x Wᵀ + b. The gradient of one sample is G = Σ_s g_s a_sᵀ, for activations a and output
gradients g. It is always [o, i], also for `Conv1D` (GPT-2), whose weight is stored as [i, o]. With the bias, G is
[o, i + 1]: its last column is Σ_s g_s.

Linear and Conv1D modules can be tracked, and each of the two linear maps of each expert where one module fuses all
experts (architectures/moe.py), the latter without their biases. Embeddings and the output head are tracked on request
only. An embedding is a linear map of one-hot inputs, whose activations are token ids [n, s]. Modules of one kind that
share one weight are one tracked module. A head and an embedding that share a weight are two, each with its own part of
the weight's gradient.
"""

import math
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear
from transformers.pytorch_utils import Conv1D

from bergson_core.errors import InvalidInput
from bergson_core.models.architectures import moe
from bergson_core.models.architectures.attention_heads import BIAS_LABEL, HeadPart

_COMPILED_PART: Final = "_orig_mod"
"""What torch.compile puts into the names of everything in a module that it wraps."""


@dataclass(frozen=True)
class TrackedModule:
    """A module whose gradients are tracked, and the shape of these.

    Attributes:
        name: The module's name in the model; of a fused expert's map, the module's name and `expert_map`.
        module: The PyTorch module.
        out_features: o.
        in_features: i, without the bias; of an embedding, its number of entries.
        expert_map: Which linear map of which expert this is, as `down_proj.3`, where `module` fuses experts.
        tied_modules: Other modules with the very same weight and bias; the gradient is the sum over all of them.
        part: Which features of the PyTorch module these are, where one head is tracked by itself. `name`,
            `out_features` and `in_features` are then those of the head.
    """

    name: str
    module: nn.Module
    out_features: int
    in_features: int
    expert_map: str | None = None
    tied_modules: tuple[nn.Module, ...] = ()
    part: HeadPart | None = None

    @property
    def module_name(self) -> str:
        """The name of the whole module, where this is a head of it."""
        return self.name if self.part is None else self.part.module_name

    @property
    def parameter_count(self) -> int:
        """The number of weights, without the bias."""
        return self.out_features * self.in_features

    @property
    def transposed(self) -> bool:
        """Whether the weight is stored as [i, o]."""
        if self.expert_map is not None:
            return bool(self.module.is_transposed)
        return isinstance(self.module, Conv1D | nn.Embedding)

    @property
    def has_bias(self) -> bool:
        """Whether there is a bias whose gradient can be one more column."""
        if self.part is not None and self.part.side == "input" and self.part.label != BIAS_LABEL:
            return False  # the bias belongs to no head
        return getattr(self.module, "bias", None) is not None


_SHAPES: dict[type[nn.Module], Callable[..., tuple[int, int]]] = {
    nn.Linear: lambda linear: (linear.out_features, linear.in_features),
    Conv1D: lambda conv: (conv.nf, conv.nx),
    nn.Embedding: lambda embedding: (embedding.embedding_dim, embedding.num_embeddings),
}
"""(o, i) of a module, by the module's type."""


def natural_sort_key(name: str) -> list[tuple[int, int | str]]:
    """Returns a key that sorts names by the numbers in them: `layers.10` after `layers.9`."""
    return [(0, int(part)) if part.isdigit() else (1, part) for part in re.split(r"(\d+)", name)]


def find_trackable_modules(model: nn.Module) -> dict[str, TrackedModule]:
    """Returns every module that can be tracked, by name, in natural order of the names."""
    trackable: dict[str, TrackedModule] = {}
    first_names: dict[
        tuple[bool, int, int], str
    ] = {}  # of the modules with one weight and bias, the first one's
    for name, module in named_modules(model):
        if moe.is_fused_experts(module):
            for expert_map, shape in moe.find_linear_maps(module).items():
                map_name = f"{name}.{expert_map}" if name else expert_map
                trackable[map_name] = TrackedModule(map_name, module, *shape, expert_map)
            continue
        get_shape = next((get for kind, get in _SHAPES.items() if isinstance(module, kind)), None)
        if get_shape is None or not _runs_as_linear(module):
            continue
        is_embedding = isinstance(module, nn.Embedding)
        bias = getattr(module, "bias", None)
        first_name = first_names.setdefault((is_embedding, id(module.weight), id(bias)), name)
        if first_name == name:
            trackable[name] = TrackedModule(name, module, *get_shape(module))
        else:
            first = trackable[first_name]
            trackable[first_name] = replace(first, tied_modules=(*first.tied_modules, module))
    return dict(sorted(trackable.items(), key=lambda item: natural_sort_key(item[0])))


@torch.no_grad()
def _runs_as_linear(module: nn.Module) -> bool:
    """Returns whether a Linear or Conv1D computes x Wᵀ + b, or an embedding looks its weight up and no more.

    A subclass with a forward of its own, as a router may have, is run on a probe. A weight that is packed or quantised
    is taken on trust.
    """
    if isinstance(module, NonDynamicallyQuantizableLinear):
        return False  # the out_proj of nn.MultiheadAttention, which is never called
    forward = type(module).forward
    if isinstance(module, nn.Embedding):
        return forward is nn.Embedding.forward and module.max_norm is None
    if forward in (nn.Linear.forward, Conv1D.forward):
        return True
    weight, bias = cast(Tensor, module.weight), cast("Tensor | None", module.bias)
    if weight.is_meta or weight.dtype not in (torch.float64, torch.float32, torch.bfloat16, torch.float16):
        return True
    matrix = weight.T if isinstance(module, Conv1D) else weight
    probe = torch.linspace(-1, 1, matrix.shape[-1], dtype=weight.dtype, device=weight.device)[None]
    expected = F.linear(probe, matrix, bias)
    try:
        output = forward(module, probe)
    except (TypeError, ValueError, RuntimeError):
        return False  # the module takes something else than features
    same_shape = isinstance(output, Tensor) and output.shape == expected.shape
    return same_shape and torch.allclose(output.to(expected), expected, rtol=2e-2, atol=1e-3)


def active_adapter_names(model: nn.Module) -> tuple[str, ...]:
    """Returns the names of the modules that the active adapters of a PEFT model consist of; () for another model.

    A module that is trained in full beside the adapters (`modules_to_save`) is among them.
    """
    return tuple(
        f"{name}.{part}.{adapter}"
        for name, module in named_modules(model)
        if hasattr(module, "active_adapters")
        for part in getattr(module, "adapter_layer_names", ())
        for adapter in cast("list[str]", module.active_adapters)
        if adapter in getattr(module, part, ())
    )


def active_adapter_configs(model: nn.Module) -> list[dict[str, Any]]:
    """Returns PEFT's configurations of the active adapters of a model; [] for a model without adapters."""
    configs = getattr(model, "peft_config", None)
    active = getattr(model, "active_adapters", None)
    if not isinstance(configs, dict) or active is None:
        return []
    names = cast("list[str]", active() if callable(active) else active)
    return [configs[name].to_dict() for name in names]


def trained_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """Returns the parameters that training would change, by name: all of them, or those of the active adapters.

    To the adapters belong the modules that are trained in full beside them, and the biases that their configuration
    names.
    """
    parameters = {_strip_compiled(name): value for name, value in model.named_parameters()}
    adapters = active_adapter_names(model)
    if not adapters:
        return parameters
    biases = {config.get("bias", "none") for config in active_adapter_configs(model)}
    return {
        name: parameter
        for name, parameter in parameters.items()
        if is_within(name, adapters)
        or ("all" in biases and name.endswith(".bias"))
        or ("lora_only" in biases and name.endswith(".base_layer.bias"))
    }


def is_within(name: str, modules: tuple[str, ...]) -> bool:
    return any(name == module or name.startswith(f"{module}.") for module in modules)


def coverage_percent(model: nn.Module, modules: Iterable[TrackedModule]) -> float:
    """Returns the share of a model's parameters that tracked modules hold, in percent.

    Of a model with active adapters, it is the share of what was trained.
    """
    total = sum(parameter.numel() for parameter in trained_parameters(model).values())
    return 100.0 * sum(tracked.parameter_count for tracked in modules) / total


def named_modules(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Yields all modules by name. Modules that torch.compile has wrapped have the names that they had before."""
    for name, module in model.named_modules():
        if not hasattr(module, _COMPILED_PART):
            yield _strip_compiled(name), module


def _strip_compiled(name: str) -> str:
    return ".".join(part for part in name.split(".") if part != _COMPILED_PART)


def restore_sample_axis(features: Tensor, batch: Sequence[int], name: str) -> Tensor:
    """Returns the features of a module with samples and positions as their first two dimensions.

    Args:
        features: [n, ..., i], [n, i] or [n·s, i]. Integers, which an embedding takes, have no last dimension.
        batch: The shape [n, s, ...] of the model's input.
        name: The module's name, for the message.

    Returns:
        Features [n, s, i], or integers [n, s].

    Raises:
        InvalidInput: The rows of `features` cannot be told apart by sample: they are as many as neither the samples nor
            the positions of the batch, as the tokens of an expert are.
    """
    if not features.is_floating_point():
        return restore_sample_axis(features[..., None].double(), batch, name)[..., 0].to(features.dtype)
    samples, rows, width = batch[0], features.shape[0], features.shape[-1]
    if features.dim() > 2 and rows == samples:
        return features.flatten(1, -2)
    if features.dim() == 2 and (samples == 1 or rows in (samples, math.prod(batch[:2]))):
        return features.reshape(samples, rows // samples, width)
    raise InvalidInput(
        f"module {name!r} sees features of shape {tuple(features.shape)} for {samples} samples; expected "
        "[samples, positions, features], or all positions of the batch in order. Leave the module out with `modules`"
    )


def find_input_embedding(model: nn.Module) -> nn.Module | None:
    """Returns the module that embeds a language model's tokens, or None where the model does not name one."""
    getter = getattr(model, "get_input_embeddings", None)
    try:
        embedding = getter() if callable(getter) else None
    except (AttributeError, NotImplementedError):
        return None
    return embedding if isinstance(embedding, nn.Module) else None


def find_output_head(model: nn.Module) -> nn.Module | None:
    """Returns the module that computes a language model's logits, or None where the model does not name one."""
    getter = getattr(model, "get_output_embeddings", None)
    head = getter() if callable(getter) else None
    return head if isinstance(head, nn.Module) else None
