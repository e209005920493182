"""Reads the second moments of a model's parameters from the file of an optimizer's state.

Legend: V is the second moment of one parameter, in that parameter's own shape.

Accepted are the states of Adam, AdamW, transformers' and torch's Adafactor, and of any optimizer that calls V
`exp_avg_sq`. Which parameter a state belongs to is told by names where the file has them, and otherwise by the order in
which a Trainer, or `model.parameters()`, hands parameters to an optimizer; every shape has to match. Not accepted are
8-bit states, shards of DeepSpeed and FSDP, and files without names from an optimizer with parameter groups of its own.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from itertools import chain
from pathlib import Path
from pickle import UnpicklingError  # nosec B403
from typing import Any, Final

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers.trainer_pt_utils import get_parameter_names

from bergson_core.errors import InvalidInput

# The format is a pickle. weights_only executes nothing of it: all but tensors and plain values is an error.
_load = partial(torch.load, map_location="cpu", weights_only=True, mmap=True)
_DAMAGED: Final = (OSError, EOFError, RuntimeError, AssertionError, UnpicklingError)
"""What reading a file may raise that is cut short, or is no checkpoint."""
_FOREIGN: Final = (ValueError, ArithmeticError, LookupError, TypeError, AttributeError)
"""What reading a checkpoint may raise that holds something else than an optimizer's state."""

_NO_DECAY: Final = (
    ("bias", "layernorm", "rmsnorm", r"(?:^|\.)norm(?:$|\.)", r"_norm(?:$|\.)"),
    ("bias",),
)
"""Names of parameters that a Trainer gives no weight decay, beside those inside a LayerNorm: since transformers 5, and
before."""
_ADAPTER: Final = re.compile("lora_|modules_to_save")
_WRAPPER: Final = re.compile(r"^(?:(?:module|_orig_mod)\.)+|_orig_mod\.")
"""What DistributedDataParallel and torch.compile add to names of parameters."""


@dataclass(frozen=True)
class ParameterMoment:
    """The second moment of one parameter.

    Attributes:
        tensors: (V,), or Adafactor's two means of V: over its last dimension, and over the one before.
        scale: What all of them have to be multiplied with.
    """

    tensors: tuple[Tensor, ...]
    scale: float = 1.0

    def fits(self, shape: tuple[int, ...]) -> bool:
        """Returns whether this is the moment of a parameter of `shape`."""
        whole, means = [shape], [shape[:-1], (*shape[:-2], *shape[-1:])]
        shapes = [tuple(tensor.shape) for tensor in self.tensors]
        return shapes == whole or (shapes == means and len(shape) > 1)

    def scaled(self, expert: int | None = None) -> list[Tensor]:
        """Returns copies of the tensors in float32, scaled; of one expert's part where the parameter holds several."""
        parts = (tensor if expert is None else tensor[expert] for tensor in self.tensors)
        return [part.to(torch.float32) * self.scale for part in parts]


def read_parameter_moments(file: Path, model: nn.Module) -> dict[int, ParameterMoment]:
    """Returns the moments in an optimizer.pt or a safetensors file.

    Returns:
        `id` of each parameter that has a moment → its moment. The key is the parameter and not its name because a tied
        weight has several names.

    Raises:
        InvalidInput: The file cannot be read, is of another model, or has no moments of this one's parameters.
    """
    by_name = _read_safetensors(file) if file.suffix == ".safetensors" else _read_state_dict(file, model)
    parameters = dict(model.named_parameters(remove_duplicate=False))
    moments: dict[int, ParameterMoment] = {}
    for name, moment in by_name.items():
        parameter = parameters.get(name, parameters.get(_WRAPPER.sub("", name)))
        if parameter is None or moment is None:
            continue
        if not moment.fits(tuple(parameter.shape)):
            shapes = " and ".join(str(tuple(tensor.shape)) for tensor in moment.tensors)
            raise InvalidInput(
                f"{file} is of another model: moments of shape {shapes} are not of {name} {tuple(parameter.shape)}"
            )
        moments[id(parameter)] = moment
    if not moments:
        names = [name for name, moment in by_name.items() if moment is not None]
        raise InvalidInput(
            f"{file} has no second moments of this model's parameters: it has them of "
            f"{', '.join(names[:3]) or 'none'}. Expected the state of Adam, AdamW or Adafactor after a step"
        )
    return moments


def _read_safetensors(file: Path) -> dict[str, ParameterMoment | None]:
    """Returns the moments of a safetensors file, by the name of their parameter."""
    try:
        tensors = load_file(file)
    except (OSError, SafetensorError) as error:
        raise InvalidInput(f"{file} cannot be read as a safetensors file: {error}") from error
    states: dict[str, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        name, _, part = key.rpartition(".")
        if part not in ("exp_avg_sq", "exp_avg_sq_row", "exp_avg_sq_col"):
            name, part = key, "exp_avg_sq"
        states.setdefault(name, {})[part] = tensor
    return {name: _make_moment(state, {}) for name, state in states.items()}


def _read_state_dict(file: Path, model: nn.Module) -> dict[str, ParameterMoment | None]:
    """Returns the moments of an optimizer's state dict, by the name of their parameter; None where it has no state."""
    try:
        loaded = _load(file)
        states, groups = loaded["state"], loaded["param_groups"]
        moments = [_make_moment(states.get(key, {}), group) for group in groups for key in group["params"]]
        keys = [key for group in groups for key in group.get("param_names", group["params"])]
        by_key = dict(zip(keys, moments, strict=True))
    except InvalidInput:
        raise
    except (*_DAMAGED, *_FOREIGN) as error:
        raise InvalidInput(
            f"{file} cannot be read as an optimizer's state; expected what torch.save writes of "
            "optimizer.state_dict(), of tensors and plain values only: nothing else is ever unpickled"
        ) from error
    if all(isinstance(key, str) for key in by_key):
        return by_key
    sizes = [len(group["params"]) for group in groups if group["params"]]
    return dict(zip(_find_names(file, sizes, model), moments, strict=True))


def _make_moment(state: Mapping[str, Any], group: Mapping[str, Any]) -> ParameterMoment | None:
    """Returns the moment in the state of one parameter of `group`; None where the optimizer made no step with it."""
    betas, step = group.get("betas"), state.get("step", group.get("step"))
    if not state or step == 0:
        return None
    tensors = {
        key: value for key, value in state.items() if isinstance(value, Tensor) and value.is_floating_point()
    }
    match tensors:
        case {"exp_avg_sq_row": row, "exp_avg_sq_col": column}:
            return ParameterMoment((row, column))
        case {"row_var": row, "col_var": column}:
            return ParameterMoment((row.squeeze(-1), column.squeeze(-2)))
        case {"exp_avg_sq": whole} if betas is not None and step is not None:
            return ParameterMoment((whole,), 1 / (1 - float(betas[1]) ** float(step)))
        # Adafactor's decay begins at 0: there is no bias to correct.
        case {"exp_avg_sq": whole} | {"variance": whole}:
            return ParameterMoment((whole,))
    raise InvalidInput(
        f"the optimizer's state of a parameter is {', '.join(map(str, state))}; expected exp_avg_sq, as of Adam and "
        "AdamW, or exp_avg_sq_row and exp_avg_sq_col, as of Adafactor. 8-bit optimizers and SGD have no such moments"
    )


def _find_names(file: Path, sizes: list[int], model: nn.Module) -> list[str]:
    """Returns the names of the parameters, in the order in which an optimizer with groups of these sizes got them."""
    orders = list(_iter_orders(model))
    for order in orders:
        if [len(names) for names in order if names] == sizes:
            return list(chain(*order))
    expected = " or ".join(str([len(names) for names in order if names]) for order in orders[:2])
    raise InvalidInput(
        f"{file} is of another model, or its optimizer had groups of its own: it has {sum(sizes)} parameters, in "
        f"groups of {sizes}; expected for all of this model are groups of {expected}. Any groups can be read from an "
        "optimizer made with names, as AdamW(model.named_parameters())"
    )


def _iter_orders(model: nn.Module) -> Iterator[list[list[str]]]:
    """Yields the ways in which an optimizer is given the parameters, each a list of groups of names.

    The sets of names are nested, so that two orders with groups of the same sizes are the same.
    """
    parameters = dict(model.named_parameters())
    trainable = [name for name, parameter in parameters.items() if parameter.requires_grad]
    adapters = [name for name in parameters if _ADAPTER.search(name)]
    for names in (list(parameters), trainable, adapters):
        yield [names]
        for patterns in _NO_DECAY:
            decayed = set(get_parameter_names(model, [nn.LayerNorm], patterns))
            yield [[name for name in names if (name in decayed) == decays] for decays in (True, False)]
