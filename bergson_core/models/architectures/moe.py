"""Runs fused experts so that each expert's linear maps can be tracked.

A mixture of experts is fused where the weights of all experts are 3-D parameters of one module, as in transformers 5.

Legend: n samples, t tokens of the whole batch, k experts a token, e experts, r tokens routed to one expert, u the most
of them that one sample has, i input features, o output features, f any number of features.

A hook sees neither the inputs nor the outputs of a single expert, since one kernel computes them all. While a capture
is open, the module's forward is therefore `run_experts`: the loop of the module's eager implementation, which shows the
two linear maps of each expert and knows each token's sample. It runs any class that transformers'
`use_experts_implementation` marks, whatever implementation the model is set to; such a module is called `experts` here.
Experts of other classes, and routers, are no Linear modules: they are not tracked, and missing from the coverage.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

Regroup = Callable[[Tensor], Tensor]
"""Rows [r, f] of the tokens of one expert → [n, u, f], padded with zeros."""
Watch = Callable[[str, Tensor, Tensor, Regroup], Tensor]
"""(expert map, activations [r, i], outputs [r, o], how to regroup them by sample) → the outputs to go on with."""
Group = Callable[[Tensor, int], Regroup]
"""(positions in the batch [r] of an expert's tokens, tokens of the batch) → how to regroup the expert's rows."""

DOWN_PROJECTION: Final = "down_proj"
"""Name of the parameter of each expert's last linear map."""


def is_fused_experts(module: nn.Module) -> bool:
    """Returns whether `module` fuses experts in the way that `run_experts` can run."""
    marks = ("has_gate", "has_bias", "is_transposed", "_apply_gate")
    if not all(hasattr(module, mark) for mark in marks):
        return False
    weights = [getattr(module, name, None) for name in _projection_names(module)]
    return all(isinstance(w, nn.Parameter) and w.dim() == 3 and w.is_floating_point() for w in weights)


def find_linear_maps(experts: Any) -> dict[str, tuple[int, int]]:
    """Returns the shape (o, i) of each linear map of fused experts, by names as `down_proj.3` for the fourth expert."""
    shapes = {}
    for name in _projection_names(experts):
        count, *shape = getattr(experts, name).shape
        o, i = reversed(shape) if experts.is_transposed else shape
        shapes |= {f"{name}.{expert}": (o, i) for expert in range(count)}
    return shapes


def run_experts(
    experts: Any,
    watch: Watch,
    group: Group,
    hidden: Float[Tensor, "t i"],
    chosen: Int[Tensor, "t k"],
    weights: Float[Tensor, "t k"],
) -> Float[Tensor, "t i"]:
    """Returns the output of fused experts, and shows each linear map to `watch`.

    Args:
        experts: The module.
        watch: Called with the activations and outputs of each linear map.
        group: Tells the rows of one expert apart by sample.
        hidden: The activations of all tokens.
        chosen: The experts of each token.
        weights: What each of these experts' outputs is multiplied with.
    """
    first, last = _projection_names(experts)
    out = torch.zeros_like(hidden)
    for expert in range(len(getattr(experts, last))):
        token, slot = (chosen == expert).nonzero(as_tuple=True)
        regroup = group(token, len(hidden))
        rows = hidden[token]
        rows = watch(f"{first}.{expert}", rows, _run_linear_map(experts, first, expert, rows), regroup)
        # Each architecture gates in its own way, and transformers has no public name for it.
        rows = experts._apply_gate(rows) if experts.has_gate else experts.act_fn(rows)
        rows = watch(f"{last}.{expert}", rows, _run_linear_map(experts, last, expert, rows), regroup)
        if getattr(experts, "has_post_expert_norm", False):
            rows = experts.post_expert_norm(rows)
        out.index_add_(0, token, (rows * weights[token, slot, None]).to(out.dtype))
    return out


@dataclass(frozen=True)
class _BySample:
    """Where each row of one expert goes: to `sample` [r] and `place` [r] in an array of `shape` (n, u)."""

    sample: Tensor
    place: Tensor
    shape: tuple[int, int]

    def __call__(self, rows: Float[Tensor, "r f"]) -> Float[Tensor, "n u f"]:
        grouped = rows.new_zeros(*self.shape, rows.shape[-1])
        grouped[self.sample, self.place] = rows
        return grouped


def group_by_sample(token: Int[Tensor, " r"], total: int, samples: int, by_position: bool) -> Regroup:
    """Returns how to group the rows of one expert's tokens by sample.

    Args:
        token: The tokens' positions in the flattened batch, ascending.
        total: t; each sample has equally many.
        samples: n.
        by_position: Whether a row's place is its position in its sample; otherwise the rows of a sample are packed.
    """
    each = total // samples
    sample = token // each
    if by_position:
        return _BySample(sample, token % each, (samples, each))
    counts = sample.bincount(minlength=samples)
    place = torch.arange(len(token), device=token.device) - (counts.cumsum(0) - counts)[sample]
    return _BySample(sample, place, (samples, int(counts.max())))


def _projection_names(experts: Any) -> tuple[str, str]:
    """Returns the names of the parameters of an expert's first and last linear map."""
    return ("gate_up_proj" if experts.has_gate else "up_proj", DOWN_PROJECTION)


def _run_linear_map(experts: Any, name: str, expert: int, rows: Float[Tensor, "r i"]) -> Float[Tensor, "r o"]:
    weight = getattr(experts, name)[expert]
    bias = getattr(experts, f"{name}_bias")[expert] if experts.has_bias else None
    return F.linear(rows, weight.T if experts.is_transposed else weight, bias)
