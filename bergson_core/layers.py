"""Which layers can be tracked, and how their inputs and outputs become one shape.

Legend: n samples, s positions, i input features, o output features.

A tracked layer computes y = x Wᵀ + b; the gradient of one sample is G = Σ_s g_s a_sᵀ, always [o, i], also for
`Conv1D` (GPT-2), whose weight is stored as [i, o]. With the bias, G is [o, i + 1]: its last column is Σ_s g_s.
"""

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from bergson_core.errors import InvalidInput


@dataclass(frozen=True)
class Layer:
    """A tracked layer: its name in the model, the module, and the shape of its gradient."""

    name: str
    module: nn.Module
    out_features: int
    in_features: int

    @property
    def parameters(self) -> int:
        """Number of weights, without the bias."""
        return self.out_features * self.in_features


_SHAPES: dict[type[nn.Module], Callable[..., tuple[int, int]]] = {
    nn.Linear: lambda linear: (linear.out_features, linear.in_features),
    Conv1D: lambda conv: (conv.nf, conv.nx),
}


def natural_key(name: str) -> list[tuple[int, int | str]]:
    """Sorts `layers.10` after `layers.9`."""
    return [(0, int(part)) if part.isdigit() else (1, part) for part in re.split(r"(\d+)", name)]


def trackable(model: nn.Module) -> dict[str, Layer]:
    """Every layer of a known type, by name, in natural order."""
    found = {}
    for name, module in model.named_modules():
        shape = next((of for kind, of in _SHAPES.items() if isinstance(module, kind)), None)
        if shape is not None:
            found[name] = Layer(name, module, *shape(module))
    return dict(sorted(found.items(), key=lambda item: natural_key(item[0])))


def select(model: nn.Module, targets: str | Iterable[str] | None = None) -> dict[str, Layer]:
    """The layers to track: by a regular expression, by exact names, or all but the output head.

    Raises `InvalidInput` where nothing is left to track or a name is not a layer of a known type.
    """
    layers = trackable(model)
    if targets is None:
        head = output_head(model)
        chosen = {name: layer for name, layer in layers.items() if layer.module is not head}
    elif isinstance(targets, str):
        chosen = {name: layer for name, layer in layers.items() if re.search(targets, name)}
    else:
        names = set(targets)
        if unknown := sorted(names - layers.keys()):
            raise InvalidInput(
                f"no layer that can be tracked is named {unknown[0]!r}; this model has {_some(layers)}"
            )
        chosen = {name: layer for name, layer in layers.items() if name in names}
    if not chosen:
        raise InvalidInput(
            f"nothing to track: {'no layer' if targets is None else repr(targets)} matches a Linear or Conv1D "
            f"layer; this model has {_some(layers)}"
        )
    return chosen


def coverage_percent(model: nn.Module, layers: Iterable[Layer]) -> float:
    """Share of the model's parameters whose gradients the rows hold, in percent."""
    total = sum(parameter.numel() for parameter in model.parameters())
    return 100.0 * sum(layer.parameters for layer in layers) / total


def samples_first(features: Tensor, samples: int, name: str) -> Tensor:
    """`features` [n, i], [n·s, i] or [n, s, i] as [n, s, i].

    Raises `InvalidInput` where the rows cannot be told apart by sample.
    """
    if features.dim() == 3 and features.shape[0] == samples:
        return features
    if features.dim() == 2 and features.shape[0] % samples == 0:
        return features.reshape(samples, -1, features.shape[-1])
    raise InvalidInput(
        f"layer {name!r} sees features of shape {tuple(features.shape)} for {samples} samples; expected "
        "[samples, positions, features]. Leave it out with target_modules"
    )


def output_head(model: nn.Module) -> nn.Module | None:
    getter = getattr(model, "get_output_embeddings", None)
    head = getter() if callable(getter) else None
    return head if isinstance(head, nn.Module) else None


def _some(layers: dict[str, Layer]) -> str:
    names = list(layers)
    if not names:
        return "none"
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
