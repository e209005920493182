"""Per-sample gradients by a plain loop of autograd over single, unpadded documents: what the engine must equal."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from bergson_core.data.batching import Tokens


def loss_of(model: PreTrainedModel, tokens: Tokens) -> Tensor:
    """Summed cross-entropy of the labelled tokens of one document."""
    ids = torch.from_numpy(tokens.ids)[None]
    logits = model(input_ids=ids, use_cache=False).logits[0]
    targets = ids[0].where(torch.from_numpy(tokens.labels), -100)
    return F.cross_entropy(logits[:-1], targets[1:], reduction="sum")


def gradients(
    model: PreTrainedModel, names: Sequence[str], documents: Sequence[Tokens], bias: bool = False
) -> dict[str, Tensor]:
    """Layer name → [n, o, i], or [n, o, i + 1] with the bias as last column."""
    rows: dict[str, list[Tensor]] = {name: [] for name in names}
    for tokens in documents:
        model.zero_grad()
        loss_of(model, tokens).backward()
        for name in names:
            rows[name].append(weight_gradient(model.get_submodule(name), bias))
    model.zero_grad()
    return {name: torch.stack(parts) for name, parts in rows.items()}


def weight_gradient(layer: nn.Module, bias: bool) -> Tensor:
    grad = layer.weight.grad.clone()
    if isinstance(layer, Conv1D | nn.Embedding):
        grad = grad.T
    if bias and getattr(layer, "bias", None) is not None:
        grad = torch.cat([grad, layer.bias.grad[:, None]], dim=1)
    return grad


def sides(
    model: PreTrainedModel, names: Sequence[str], documents: Sequence[Tokens], bias: bool = False
) -> dict[str, list[tuple[Tensor, Tensor]]]:
    """Layer name → (inputs [s, i], or [s, i + 1] with a column of ones for the bias, output gradients [s, o])."""
    found: dict[str, list[tuple[Tensor, Tensor]]] = {name: [] for name in names}
    for tokens in documents:
        seen: dict[nn.Module, tuple[Tensor, Tensor]] = {}

        def remember(module: nn.Module, args: tuple, output: Tensor, seen: dict = seen) -> None:
            output.retain_grad()
            seen[module] = (args[0].detach(), output)

        handles = [model.get_submodule(name).register_forward_hook(remember) for name in names]
        loss_of(model, tokens).backward()
        for handle in handles:
            handle.remove()
        for name in names:
            a, output = seen[model.get_submodule(name)]
            a, g = a.reshape(-1, a.shape[-1]), output.grad.reshape(-1, output.shape[-1])
            if bias and model.get_submodule(name).bias is not None:
                a = torch.cat([a, torch.ones_like(a[:, :1])], dim=1)
            found[name].append((a, g))
    model.zero_grad()
    return found
