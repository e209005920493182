"""Makes normalizers of the second moments in an optimizer's checkpoint, in place of those fitted from a sample.

Legend: o output features, i input features; V the second moment of one parameter, in that parameter's own shape: [o, i]
for Linear, [i, o] for Conv1D and Embedding, [experts, ...] for fused experts. A normalizer is always [o, i].

An optimizer keeps a running mean of the squared gradients of batches; processor_fitting.py takes the mean over single
documents. optimizer_state.py reads the files.
"""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn

from bergson_core.errors import InvalidInput
from bergson_core.gradients.normalizers.normalizers import AdafactorNormalizer, AdamNormalizer, Normalizer
from bergson_core.gradients.normalizers.optimizer_state import ParameterMoment, read_parameter_moments
from bergson_core.models.architectures.attention_heads import HeadPart
from bergson_core.models.modules import TrackedModule

CheckpointNormalizer = Literal["adafactor", "adam"]


def read_checkpoint_normalizers(
    path: str | Path,
    model: nn.Module,
    modules: dict[str, TrackedModule],
    kind: CheckpointNormalizer,
    *,
    include_bias: bool = False,
) -> dict[str, Normalizer]:
    """Returns a normalizer for each of `modules`, made of an optimizer's second moments.

    Args:
        path: An optimizer.pt, the directory of a checkpoint that holds one, or a safetensors file of moments that are
            used as they are: `NAME` or `NAME.exp_avg_sq` is V of the parameter NAME, `NAME.exp_avg_sq_row` and
            `NAME.exp_avg_sq_col` are its means over the last dimension and over the one before. The moments of Adam
            in an optimizer.pt are divided by 1 - β2^step. An optimizer.pt without names may be of all parameters, of
            those that require a gradient, or of the model's adapters.
        model: The model that was trained.
        modules: The tracked modules, by name.
        kind: The kind of normalizer.
        include_bias: Whether the normalizers cover biases too.

    Returns:
        Normalizers with float32 tensors on the CPU, by the names of the modules.

    Raises:
        InvalidInput: The file cannot be read, or is of another model or optimizer; moments are missing, negative or not
            finite; or `kind` is adam and the file has Adafactor's means only.
    """
    if kind not in ("adafactor", "adam"):
        raise InvalidInput(f"no second moment gives the normalizer {kind!r}; expected adafactor or adam")
    file = find_checkpoint_file(path)
    moments = read_parameter_moments(file, model)
    normalizers: dict[str, Normalizer] = {}
    missing = []
    for name, tracked in modules.items():
        normalizer = _make_normalizer(tracked, moments, kind, include_bias)
        if normalizer is None:
            missing.append(name)
        else:
            normalizers[name] = normalizer
    if missing:
        raise InvalidInput(
            f"{file} has no second moments for {len(missing)} of the {len(modules)} tracked modules: "
            f"{', '.join(missing[:3])}{', ...' if missing[3:] else ''}. Choose `modules` that were trained"
            f"{' with their biases' if include_bias else ''}, or drop optimizer_state"
        )
    return normalizers


def find_checkpoint_file(path: str | Path) -> Path:
    """Returns the file that `path` stands for: itself, or the optimizer.pt in the directory.

    Raises:
        InvalidInput: There is none.
    """
    file = Path(path).expanduser()
    file = file / "optimizer.pt" if os.path.isdir(file) else file
    if not os.path.isfile(file):
        raise InvalidInput(
            f"no optimizer state at {file}; expected an optimizer.pt, a checkpoint's directory that holds one, or a "
            "safetensors file of second moments"
        )
    return file


def _make_normalizer(
    tracked: TrackedModule,
    moments: Mapping[int, ParameterMoment],
    kind: CheckpointNormalizer,
    include_bias: bool,
) -> Normalizer | None:
    """Returns the normalizer of a module; None where a parameter of the module has no moment."""
    module = cast(Any, tracked.module)
    if tracked.expert_map is None:
        weight, expert = module.weight, None
    else:
        name, number = tracked.expert_map.rsplit(".", 1)
        weight, expert = getattr(module, name), int(number)
    parameters = [weight, *([module.bias] if include_bias and tracked.has_bias else [])]
    if any(id(parameter) not in moments for parameter in parameters):
        return None
    weight_tensors = moments[id(weight)].scaled(expert)
    bias_tensors = [tensor for parameter in parameters[1:] for tensor in moments[id(parameter)].scaled()]
    ranges = (tensor.aminmax() for tensor in weight_tensors + bias_tensors)
    if not all(low >= 0 and high < torch.inf for low, high in ranges):
        raise InvalidInput(
            f"the moments of module {tracked.name!r} are negative or not finite; expected means of squared gradients, "
            "from a run that did not diverge"
        )
    if kind == "adam" and len(weight_tensors) > 1:
        raise InvalidInput(
            f"of module {tracked.name!r} the file has only Adafactor's row and column means; expected normalizer "
            "adafactor, or the state of Adam or AdamW"
        )
    if tracked.transposed:
        weight_tensors = [tensor.t() for tensor in reversed(weight_tensors)]
    if tracked.part is not None:
        weight_tensors = _take_part(tracked.part, weight_tensors)
        bias_tensors = [tracked.part.take(moment, "output") for moment in bias_tensors]
    return _from_moments(weight_tensors, bias_tensors, kind)


def _take_part(part: HeadPart, weight: Sequence[Tensor]) -> list[Tensor]:
    """Returns the part of a head of (V [o, i],), or means of what V is by its means ([o], [i]), r cᵀ / mean(r)."""
    if len(weight) == 1:
        return [part.take(part.take(weight[0], "output", 0), "input", 1)]
    row, column = weight
    rows, columns = part.take(row, "output"), part.take(column, "input")
    mean = row.mean()
    if not part.size or not mean > 0:
        return [rows, columns]
    return [rows * (columns.mean() / mean), columns * (rows.mean() / mean)]


def _from_moments(weight: Sequence[Tensor], bias: Sequence[Tensor], kind: CheckpointNormalizer) -> Normalizer:
    """Returns the normalizer of (V [o, i],) or of its means ([o], [i]), widened by (the bias's V [o],) or ()."""
    if len(weight) == 1:
        whole = torch.cat([*weight, *(moment[:, None] for moment in bias)], dim=1)
        return AdamNormalizer(whole) if kind == "adam" else AdafactorNormalizer(whole.mean(1), whole.mean(0))
    row, column = weight
    for moment in bias:
        row = (row * len(column) + moment) / (len(column) + 1)
        column = torch.cat([column, moment.mean()[None]])
    return AdafactorNormalizer(row, column)
