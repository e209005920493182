"""Per-sample gradients by a plain loop of autograd over single documents without padding, for comparison.

Legend: n documents, s positions, i inputs and o outputs of a module.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from bergson_core.gradients.projection import PROJECTIONS, block_shape
from bergson_core.schemas.build import Projection
from bergson_core.tokens.tokenization import Tokens


def loss_of(model: PreTrainedModel, tokens: Tokens) -> Tensor:
    """Returns the sum of the cross-entropies of the labelled tokens of one document."""
    ids = torch.from_numpy(tokens.ids)[None]
    logits = model(input_ids=ids, use_cache=False).logits[0]
    targets = ids[0].where(torch.from_numpy(tokens.labels), -100)
    return F.cross_entropy(logits[:-1], targets[1:], reduction="sum")


def gradients(
    model: PreTrainedModel, names: Sequence[str], documents: Sequence[Tokens], bias: bool = False
) -> dict[str, Tensor]:
    """Returns the gradients by module, [n, o, i], or [n, o, i + 1] with those of the bias as the last column."""
    rows: dict[str, list[Tensor]] = {name: [] for name in names}
    for tokens in documents:
        model.zero_grad()
        loss_of(model, tokens).backward()
        for name in names:
            rows[name].append(weight_gradient(model.get_submodule(name), bias))
    model.zero_grad()
    return {name: torch.stack(parts) for name, parts in rows.items()}


def weight_gradient(module: nn.Module, bias: bool) -> Tensor:
    grad = module.weight.grad.clone()
    if isinstance(module, Conv1D | nn.Embedding):
        grad = grad.T
    if bias and getattr(module, "bias", None) is not None:
        grad = torch.cat([grad, module.bias.grad[:, None]], dim=1)
    return grad


def project(gradients: Tensor, name: str, p: int, seed: int = 0, kind: Projection = "orthogonal") -> Tensor:
    """Returns the numbers [..., p²] that rows have of the gradients [..., o, i] of a module."""
    sides = gradients.shape[-2:]
    kept = block_shape(kind, p, *sides)
    left = PROJECTIONS[kind](seed, name, "left", kept[0], sides[0]).to(gradients)
    right = PROJECTIONS[kind](seed, name, "right", kept[1], sides[1]).to(gradients)
    return F.pad((left @ gradients @ right.T).flatten(-2), (0, p * p - kept[0] * kept[1]))


def inputs_and_output_gradients(
    model: PreTrainedModel, names: Sequence[str], documents: Sequence[Tokens], bias: bool = False
) -> dict[str, list[tuple[Tensor, Tensor]]]:
    """Returns, by module, a pair for each document: inputs [s, i] and output gradients [s, o].

    With `bias` the inputs are [s, i + 1], with a column of ones.
    """
    pairs: dict[str, list[tuple[Tensor, Tensor]]] = {name: [] for name in names}
    for tokens in documents:
        captured: dict[nn.Module, tuple[Tensor, Tensor]] = {}

        def capture(module: nn.Module, args: tuple, output: Tensor, captured: dict = captured) -> None:
            output.retain_grad()
            captured[module] = (args[0].detach(), output)

        handles = [model.get_submodule(name).register_forward_hook(capture) for name in names]
        loss_of(model, tokens).backward()
        for handle in handles:
            handle.remove()
        for name in names:
            a, output = captured[model.get_submodule(name)]
            a, g = a.reshape(-1, a.shape[-1]), output.grad.reshape(-1, output.shape[-1])
            if bias and model.get_submodule(name).bias is not None:
                a = torch.cat([a, torch.ones_like(a[:, :1])], dim=1)
            pairs[name].append((a, g))
    model.zero_grad()
    return pairs
