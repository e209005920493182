"""Fused experts: mixtures whose expert weights are 3-D parameters of one module, as transformers 5 has them.

Legend: n samples, t tokens of the whole batch, k experts a token, e experts, r tokens routed to one expert,
u the most of them that one sample has, i input features, o output features.

A hook sees neither the inputs nor the outputs of a single expert, since one kernel computes them all. So while a
capture is open the module's forward is `run`: the loop of its eager implementation, which shows each expert's two
linear maps, with each token's sample known. Any class that transformers' `use_experts_implementation` marks is run,
whatever implementation the model is set to; such a module is called `experts` here. Experts of other classes, and
routers, are no Linear layers: they are not tracked, and missing from the coverage.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

Regroup = Callable[[Tensor], Tensor]
"""Rows [r, f] of the tokens of one expert as [n, u, f], padded with zeros."""
Watch = Callable[[str, Tensor, Tensor, Regroup], Tensor]
"""(part, activations [r, i], outputs [r, o], how to regroup them by sample) → the outputs to go on with."""
Group = Callable[[Tensor, int], Regroup]
"""(positions in the batch [r] of an expert's tokens, tokens of the batch) → how to regroup its rows."""


def is_fused_experts(module: nn.Module) -> bool:
    """Whether `run` computes what `module` does."""
    marks = ("has_gate", "has_bias", "is_transposed", "_apply_gate")
    if not all(hasattr(module, mark) for mark in marks):
        return False
    weights = [getattr(module, name, None) for name in _projections(module)]
    return all(isinstance(w, nn.Parameter) and w.dim() == 3 and w.is_floating_point() for w in weights)


def find_linear_maps(experts: Any) -> dict[str, tuple[int, int]]:
    """Each linear map of fused experts, as `down_proj.3` for the fourth expert → (o, i)."""
    found = {}
    for name in _projections(experts):
        count, *shape = getattr(experts, name).shape
        o, i = reversed(shape) if experts.is_transposed else shape
        found |= {f"{name}.{expert}": (o, i) for expert in range(count)}
    return found


def run_experts(
    experts: Any,
    watch: Watch,
    group: Group,
    hidden: Float[Tensor, "t i"],
    chosen: Int[Tensor, "t k"],
    weights: Float[Tensor, "t k"],
) -> Float[Tensor, "t i"]:
    """The output of fused experts; `group` tells the rows of one expert apart by sample."""
    first, last = _projections(experts)
    out = torch.zeros_like(hidden)
    for expert in range(len(getattr(experts, last))):
        token, slot = (chosen == expert).nonzero(as_tuple=True)
        regroup = group(token, len(hidden))
        rows = hidden[token]
        rows = watch(f"{first}.{expert}", rows, _linear(experts, first, expert, rows), regroup)
        rows = experts._apply_gate(rows) if experts.has_gate else experts.act_fn(rows)
        rows = watch(f"{last}.{expert}", rows, _linear(experts, last, expert, rows), regroup)
        if getattr(experts, "has_post_expert_norm", False):
            rows = experts.post_expert_norm(rows)
        out.index_add_(0, token, (rows * weights[token, slot, None]).to(out.dtype))
    return out


@dataclass(frozen=True)
class _BySample:
    """Where the rows of one expert go: `sample` [r] and `place` [r], in an array of `shape` (n, u)."""

    sample: Tensor
    place: Tensor
    shape: tuple[int, int]

    def __call__(self, rows: Float[Tensor, "r f"]) -> Float[Tensor, "n u f"]:
        grouped = rows.new_zeros(*self.shape, rows.shape[-1])
        grouped[self.sample, self.place] = rows
        return grouped


def group_by_sample(token: Int[Tensor, " r"], total: int, samples: int, by_position: bool) -> Regroup:
    """How to group the rows of `token`, which are ascending positions of `total`, equally many of each sample.

    With `by_position` a row's place is its position in its sample, else rows are packed.
    """
    each = total // samples
    sample = token // each
    if by_position:
        return _BySample(sample, token % each, (samples, each))
    counts = sample.bincount(minlength=samples)
    place = torch.arange(len(token), device=token.device) - (counts.cumsum(0) - counts)[sample]
    return _BySample(sample, place, (samples, int(counts.max())))


def _projections(experts: Any) -> tuple[str, str]:
    return ("gate_up_proj" if experts.has_gate else "up_proj", "down_proj")


def _linear(experts: Any, name: str, expert: int, rows: Float[Tensor, "r i"]) -> Float[Tensor, "r o"]:
    weight = getattr(experts, name)[expert]
    bias = getattr(experts, f"{name}_bias")[expert] if experts.has_bias else None
    return F.linear(rows, weight.T if experts.is_transposed else weight, bias)
