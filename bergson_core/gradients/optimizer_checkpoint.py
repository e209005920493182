"""Second moments from an optimizer's checkpoint, in place of those fitted from a sample.

Legend: o output features, i input features; V the second moment of one parameter, in that parameter's own shape: [o, i]
for Linear, [i, o] for Conv1D and Embedding, [experts, ...] for fused experts. A normalizer is always [o, i].

An optimizer keeps a running mean of the squared gradients of batches; fitting.py takes the mean over single samples.

Read are the states of Adam, AdamW, transformers' and torch's Adafactor, and of whatever else calls V `exp_avg_sq`.
Whose they are is told by names where the file has them, else by the order in which a Trainer, or
`model.parameters()`, hands parameters over; every shape has to match. Not read: 8-bit states, shards of DeepSpeed
and FSDP, and files without names from an optimizer with groups of its own.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, Final, Literal, cast

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers.trainer_pt_utils import get_parameter_names

from bergson_core.errors import InvalidInput
from bergson_core.gradients.normalizers import AdafactorNormalizer, AdamNormalizer, Normalizer
from bergson_core.models.modules import TrackedModule

CheckpointNormalizer = Literal["adafactor", "adam"]

# The format is a pickle. weights_only runs nothing of it: whatever is not a tensor or a plain value is an error.
_load = partial(torch.load, map_location="cpu", weights_only=True, mmap=True)
_DAMAGED: Final = (OSError, EOFError, RuntimeError, AssertionError, UnpicklingError)
_FOREIGN: Final = (ValueError, ArithmeticError, LookupError, TypeError, AttributeError)
"""What reading a file may raise that is cut short or no checkpoint, and one that holds something else."""

_NO_DECAY: Final = (
    ("bias", "layernorm", "rmsnorm", r"(?:^|\.)norm(?:$|\.)", r"_norm(?:$|\.)"),
    ("bias",),
)
"""Names that a Trainer spares weight decay, beside those inside a LayerNorm: in transformers 5, and before."""
_ADAPTER: Final = re.compile("lora_|modules_to_save")
_WRAPPER: Final = re.compile(r"^(?:(?:module|_orig_mod)\.)+|_orig_mod\.")
"""What DistributedDataParallel and torch.compile add to names of parameters."""


@dataclass(frozen=True)
class _Moment:
    """(V,) of one parameter, or V's means over its last dimension and over the one before; all times `scale`."""

    tensors: tuple[Tensor, ...]
    scale: float = 1.0

    def fits(self, shape: tuple[int, ...]) -> bool:
        whole, means = [shape], [shape[:-1], (*shape[:-2], *shape[-1:])]
        shapes = [tuple(tensor.shape) for tensor in self.tensors]
        return shapes == whole or (shapes == means and len(shape) > 1)

    def numbers(self, expert: int | None = None) -> list[Tensor]:
        """Copies in float32, of one expert's part where the parameter holds several."""
        parts = (tensor if expert is None else tensor[expert] for tensor in self.tensors)
        return [part.to(torch.float32) * self.scale for part in parts]


def read_checkpoint_normalizers(
    path: str | Path,
    model: nn.Module,
    modules: dict[str, TrackedModule],
    kind: CheckpointNormalizer,
    *,
    include_bias: bool = False,
) -> dict[str, Normalizer]:
    """A normalizer for each of `layers`, of float32 tensors on the CPU.

    `path` is an optimizer.pt, a checkpoint's directory that holds one, or a safetensors file of moments as they are to
    be used: `NAME` or `NAME.exp_avg_sq` is V of the parameter NAME, `NAME.exp_avg_sq_row` and `NAME.exp_avg_sq_col`
    are its means over the last dimension and over the one before. Adam's are divided by 1 - β2^step. An optimizer.pt
    without names may be of all parameters, of those that require a gradient, or of the model's adapters.

    Raises `InvalidInput` for a file that cannot be read, or is of another model or optimizer; for moments that are
    missing, negative or not finite; and for `adam` where Adafactor kept means only.
    """
    if kind not in ("adafactor", "adam"):
        raise InvalidInput(f"no second moment gives the normalizer {kind!r}; expected adafactor or adam")
    file = find_checkpoint_file(path)
    named = _named_tensors(file) if file.suffix == ".safetensors" else _named_state(file, model)
    moments = _by_parameter(file, named, model)
    found = {name: _normalizer(layer, moments, kind, include_bias) for name, layer in modules.items()}
    if missing := [name for name, normalizer in found.items() if normalizer is None]:
        raise InvalidInput(
            f"{file} has no second moments for {len(missing)} of the {len(modules)} tracked layers: "
            f"{', '.join(missing[:3])}{', ...' if missing[3:] else ''}. Choose `modules` that were trained"
            f"{' with their biases' if include_bias else ''}, or drop optimizer_state"
        )
    return {name: normalizer for name, normalizer in found.items() if normalizer is not None}


def find_checkpoint_file(path: str | Path) -> Path:
    """The file that `path` stands for. Raises `InvalidInput` where there is none."""
    file = Path(path).expanduser()
    file = file / "optimizer.pt" if file.is_dir() else file
    if not file.is_file():
        raise InvalidInput(
            f"no optimizer state at {file}; expected an optimizer.pt, a checkpoint's directory that holds one, or a "
            "safetensors file of second moments"
        )
    return file


def _named_tensors(file: Path) -> dict[str, _Moment | None]:
    """The moments of a safetensors file, by the name of their parameter."""
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
    return {name: _moment(state, {}) for name, state in states.items()}


def _named_state(file: Path, model: nn.Module) -> dict[str, _Moment | None]:
    """The moments of an optimizer's state dict, by the name of their parameter; None for one without a state."""
    try:
        loaded = _load(file)
        states, groups = loaded["state"], loaded["param_groups"]
        moments = [_moment(states.get(key, {}), group) for group in groups for key in group["params"]]
        keys = [key for group in groups for key in group.get("param_names", group["params"])]
        named = dict(zip(keys, moments, strict=True))
    except InvalidInput:
        raise
    except (*_DAMAGED, *_FOREIGN) as error:
        raise InvalidInput(
            f"{file} cannot be read as an optimizer's state; expected what torch.save writes of "
            "optimizer.state_dict(), of tensors and plain values only: nothing else is ever unpickled"
        ) from error
    if all(isinstance(key, str) for key in named):
        return named
    sizes = [len(group["params"]) for group in groups if group["params"]]
    return dict(zip(_names_in_order(file, sizes, model), moments, strict=True))


def _moment(state: Mapping[str, Any], group: Mapping[str, Any]) -> _Moment | None:
    """The moment in an optimizer's state of one parameter of `group`; None where it has made no step."""
    betas, step = group.get("betas"), state.get("step", group.get("step"))
    if not state or step == 0:
        return None
    found = {
        key: value for key, value in state.items() if isinstance(value, Tensor) and value.is_floating_point()
    }
    match found:
        case {"exp_avg_sq_row": row, "exp_avg_sq_col": column}:
            return _Moment((row, column))
        case {"row_var": row, "col_var": column}:
            return _Moment((row.squeeze(-1), column.squeeze(-2)))
        case {"exp_avg_sq": whole} if betas is not None and step is not None:
            return _Moment((whole,), 1 / (1 - float(betas[1]) ** float(step)))
        case {"exp_avg_sq": whole} | {"variance": whole}:  # Adafactor's decay begins at 0: nothing to correct
            return _Moment((whole,))
    raise InvalidInput(
        f"the optimizer's state of a parameter is {', '.join(map(str, state))}; expected exp_avg_sq, as of Adam and "
        "AdamW, or exp_avg_sq_row and exp_avg_sq_col, as of Adafactor. 8-bit optimizers and SGD have no such moments"
    )


def _names_in_order(file: Path, sizes: list[int], model: nn.Module) -> list[str]:
    """The names of the parameters as an optimizer of groups of these sizes was given them."""
    orders = list(_orders(model))
    for order in orders:
        if [len(names) for names in order if names] == sizes:
            return list(chain(*order))
    expected = " or ".join(str([len(names) for names in order if names]) for order in orders[:2])
    raise InvalidInput(
        f"{file} is of another model, or its optimizer had groups of its own: it has {sum(sizes)} parameters, in "
        f"groups of {sizes}; expected for all of this model are groups of {expected}. Any groups can be read from an "
        "optimizer made with names, as AdamW(model.named_parameters())"
    )


def _orders(model: nn.Module) -> Iterator[list[list[str]]]:
    """Ways in which parameters are handed over, in groups: nested sets, so that two of the same sizes are the same."""
    parameters = dict(model.named_parameters())
    trained = [name for name, parameter in parameters.items() if parameter.requires_grad]
    adapters = [name for name in parameters if _ADAPTER.search(name)]
    for names in (list(parameters), trained, adapters):
        yield [names]
        for patterns in _NO_DECAY:
            decayed = set(get_parameter_names(model, [nn.LayerNorm], patterns))
            yield [[name for name in names if (name in decayed) == decays] for decays in (True, False)]


def _by_parameter(file: Path, named: Mapping[str, _Moment | None], model: nn.Module) -> dict[int, _Moment]:
    """`id` of each parameter that has a moment → the moment: a tied weight has several names."""
    parameters = dict(model.named_parameters(remove_duplicate=False))
    found: dict[int, _Moment] = {}
    for name, moment in named.items():
        parameter = parameters.get(name, parameters.get(_WRAPPER.sub("", name)))
        if parameter is None or moment is None:
            continue
        if not moment.fits(tuple(parameter.shape)):
            shapes = " and ".join(str(tuple(tensor.shape)) for tensor in moment.tensors)
            raise InvalidInput(
                f"{file} is of another model: moments of shape {shapes} are not of {name} {tuple(parameter.shape)}"
            )
        found[id(parameter)] = moment
    if not found:
        others = [name for name, moment in named.items() if moment is not None]
        raise InvalidInput(
            f"{file} has no second moments of this model's parameters: it has them of "
            f"{', '.join(others[:3]) or 'none'}. Expected the state of Adam, AdamW or Adafactor after a step"
        )
    return found


def _normalizer(
    layer: TrackedModule, moments: Mapping[int, _Moment], kind: CheckpointNormalizer, include_bias: bool
) -> Normalizer | None:
    """From the moments of the layer's parameters, by `id`; None where one of them is missing."""
    module = cast(Any, layer.module)
    if layer.part is None:
        weight, expert = module.weight, None
    else:
        name, number = layer.part.rsplit(".", 1)
        weight, expert = getattr(module, name), int(number)
    needed = [weight, *([module.bias] if include_bias and layer.has_bias else [])]
    if any(id(parameter) not in moments for parameter in needed):
        return None
    numbers = moments[id(weight)].numbers(expert)
    bias = [number for parameter in needed[1:] for number in moments[id(parameter)].numbers()]
    if not all(low >= 0 and high < torch.inf for low, high in (part.aminmax() for part in numbers + bias)):
        raise InvalidInput(
            f"the moments of layer {layer.name!r} are negative or not finite; expected means of squared gradients, "
            "from a run that did not diverge"
        )
    if kind == "adam" and len(numbers) > 1:
        raise InvalidInput(
            f"of layer {layer.name!r} the file has only Adafactor's row and column means; expected normalizer "
            "adafactor, or the state of Adam or AdamW"
        )
    return _from_numbers(
        [part.t() for part in reversed(numbers)] if layer.transposed else numbers, bias, kind
    )


def _from_numbers(
    numbers: Sequence[Tensor], bias: Sequence[Tensor], kind: CheckpointNormalizer
) -> Normalizer:
    """From (V [o, i],) or its means ([o], [i]), widened by the bias's V [o] where there is one."""
    if len(numbers) == 1:
        whole = torch.cat([*numbers, *(part[:, None] for part in bias)], dim=1)
        return AdamNormalizer(whole) if kind == "adam" else AdafactorNormalizer(whole.mean(1), whole.mean(0))
    row, column = numbers
    for part in bias:
        row = (row * len(column) + part) / (len(column) + 1)
        column = torch.cat([column, part.mean()[None]])
    return AdafactorNormalizer(row, column)
