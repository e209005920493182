"""Which layers can be tracked, and how their inputs and outputs become one shape.

Legend: n samples, s positions, i input features (of an embedding, its entries), o output features.

A tracked layer computes y = x Wᵀ + b; the gradient of one sample is G = Σ_s g_s a_sᵀ, always [o, i], also for
`Conv1D` (GPT-2), whose weight is stored as [i, o]. With the bias, G is [o, i + 1]: its last column is Σ_s g_s.

Tracked are Linear and Conv1D modules, and each expert's two linear maps where a module fuses them (experts.py), the
latter without their biases. On request also the output head, and embeddings: linear maps of one-hot inputs, whose
activations are token ids [n, s]. Modules of one kind that share one weight are one layer; a head and an embedding that
share theirs are two, each with its own part of the gradient.
"""

import math
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear
from transformers.pytorch_utils import Conv1D

from bergson_core.errors import InvalidInput
from bergson_core.models import moe
from bergson_core.utils.safe_regex import find_matching_names


@dataclass(frozen=True)
class TrackedModule:
    """A tracked layer: its name in the model, the module, and the shape of its gradient.

    `part` is which of the linear maps of fused experts it is, None for a module of its own. `twins` are other
    modules with the very same weight and bias: the gradient is the sum over all of them.
    """

    name: str
    module: nn.Module
    out_features: int
    in_features: int
    part: str | None = None
    twins: tuple[nn.Module, ...] = ()

    @property
    def parameter_count(self) -> int:
        """Number of weights, without the bias."""
        return self.out_features * self.in_features

    @property
    def transposed(self) -> bool:
        """Whether the weight is stored as [i, o]."""
        if self.part is not None:
            return bool(self.module.is_transposed)
        return isinstance(self.module, Conv1D | nn.Embedding)

    @property
    def has_bias(self) -> bool:
        """Whether there is a bias whose gradient can be one more column."""
        return getattr(self.module, "bias", None) is not None


_SHAPES: dict[type[nn.Module], Callable[..., tuple[int, int]]] = {
    nn.Linear: lambda linear: (linear.out_features, linear.in_features),
    Conv1D: lambda conv: (conv.nf, conv.nx),
    nn.Embedding: lambda embedding: (embedding.embedding_dim, embedding.num_embeddings),
}


def natural_sort_key(name: str) -> list[tuple[int, int | str]]:
    """Sorts `layers.10` after `layers.9`."""
    return [(0, int(part)) if part.isdigit() else (1, part) for part in re.split(r"(\d+)", name)]


def find_trackable_modules(model: nn.Module) -> dict[str, TrackedModule]:
    """Every layer of a known type, by name, in natural order."""
    found: dict[str, TrackedModule] = {}
    first_with: dict[tuple[bool, int, int], str] = {}
    for name, module in model.named_modules():
        if moe.is_fused_experts(module):
            for part, shape in moe.find_linear_maps(module).items():
                whole = f"{name}.{part}" if name else part
                found[whole] = TrackedModule(whole, module, *shape, part)
            continue
        shape = next((of for kind, of in _SHAPES.items() if isinstance(module, kind)), None)
        if shape is None or not _runs_as_linear(module):
            continue
        is_embedding = isinstance(module, nn.Embedding)
        bias = getattr(module, "bias", None)
        owner = first_with.setdefault((is_embedding, id(module.weight), id(bias)), name)
        if owner == name:
            found[name] = TrackedModule(name, module, *shape(module))
        else:
            found[owner] = replace(found[owner], twins=(*found[owner].twins, module))
    return dict(sorted(found.items(), key=lambda item: natural_sort_key(item[0])))


@torch.no_grad()
def _runs_as_linear(module: nn.Module) -> bool:
    """Whether a Linear or Conv1D computes x Wᵀ + b: a subclass with a forward of its own, as of a router, may not.

    An embedding has to look its weight up, no more. A weight that is packed or quantised is taken on trust.
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
        return False  # takes something else than features
    same_shape = isinstance(output, Tensor) and output.shape == expected.shape
    return same_shape and torch.allclose(output.to(expected), expected, rtol=2e-2, atol=1e-3)


def select_modules(model: nn.Module, targets: str | Iterable[str] | None = None) -> dict[str, TrackedModule]:
    """The layers to track: by a regular expression, by exact names, or by default.

    The default is all but embeddings and the output head; of a model with adapters (PEFT), those that are active.
    Raises `InvalidInput` where nothing is left to track, a name is not a layer of a known type, or the expression
    takes too long.
    """
    layers = find_trackable_modules(model)
    if targets is None:
        head, adapters = find_output_head(model), active_adapter_names(model)
        chosen = {
            name: layer
            for name, layer in layers.items()
            if (_is_within(name, adapters) if adapters else layer.module is not head)
            and not isinstance(layer.module, nn.Embedding)
        }
    elif isinstance(targets, str):
        found = find_matching_names(targets, list(layers))
        chosen = {name: layer for name, layer in layers.items() if name in found}
    else:
        names = set(targets)
        if unknown := sorted(names - layers.keys()):
            raise InvalidInput(
                f"no layer that can be tracked is named {unknown[0]!r}; this model has {_some(layers)}"
            )
        chosen = {name: layer for name, layer in layers.items() if name in names}
    if not chosen:
        raise InvalidInput(
            f"nothing to track: {'no layer' if targets is None else repr(targets)} matches a Linear, Conv1D or "
            f"Embedding layer or fused experts; this model has {_some(layers)}"
        )
    return chosen


def active_adapter_names(model: nn.Module) -> tuple[str, ...]:
    """Names of the modules of a PEFT model that its active adapters consist of; empty for any other model."""
    return tuple(
        f"{name}.{part}.{adapter}"
        for name, module in model.named_modules()
        if hasattr(module, "active_adapters")
        for part in getattr(module, "adapter_layer_names", ())
        for adapter in cast("list[str]", module.active_adapters)
        if adapter in getattr(module, part, ())
    )


def _is_within(name: str, modules: tuple[str, ...]) -> bool:
    return any(name == module or name.startswith(f"{module}.") for module in modules)


def coverage_percent(model: nn.Module, modules: Iterable[TrackedModule]) -> float:
    """Share of the model's parameters whose gradients the rows hold, in percent; of the adapters' where it has some."""
    adapters = active_adapter_names(model)
    total = sum(
        parameter.numel()
        for name, parameter in model.named_parameters()
        if not adapters or _is_within(name, adapters)
    )
    return 100.0 * sum(layer.parameter_count for layer in modules) / total


def restore_sample_axis(features: Tensor, batch: Sequence[int], name: str) -> Tensor:
    """`features` [n, ..., i], [n, i] or [n·s, i] as [n, s, i], for a model's input of shape `batch` [n, s, ...].

    Integers, which an embedding takes, have no last dimension: they come back as [n, s].
    Raises `InvalidInput` where the rows cannot be told apart by sample: they are as many as neither the samples
    nor the positions of the batch, as an expert's tokens are.
    """
    if not features.is_floating_point():
        return restore_sample_axis(features[..., None].double(), batch, name)[..., 0].to(features.dtype)
    samples, rows, width = batch[0], features.shape[0], features.shape[-1]
    if features.dim() > 2 and rows == samples:
        return features.flatten(1, -2)
    if features.dim() == 2 and (samples == 1 or rows in (samples, math.prod(batch[:2]))):
        return features.reshape(samples, rows // samples, width)
    raise InvalidInput(
        f"layer {name!r} sees features of shape {tuple(features.shape)} for {samples} samples; expected "
        "[samples, positions, features], or all positions of the batch in order. Leave it out with target_modules"
    )


def find_output_head(model: nn.Module) -> nn.Module | None:
    getter = getattr(model, "get_output_embeddings", None)
    head = getter() if callable(getter) else None
    return head if isinstance(head, nn.Module) else None


def _some(layers: dict[str, TrackedModule]) -> str:
    names = list(layers)
    if not names:
        return "none"
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
