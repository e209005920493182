"""One forward and backward pass for a batch of documents: the only place where a loss is computed.

Legend: n samples, s positions, t labelled tokens of the whole batch, h hidden features, v vocabulary.

With frozen parameters and a capture open (`hooks.capture`), the backward pass computes activation gradients
only. Logits exist for labelled tokens only, a chunk at a time; [n, s, v] is formed only for a model that is not
its backbone and a linear head (`models.LanguageModel`).
"""

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from bergson_core.batching import Batch
from bergson_core.models import LanguageModel

_LOGITS_AT_ONCE = 2**24


def forward_backward(model: LanguageModel, batch: Batch) -> Float[Tensor, " {len(batch)}"]:
    """Back-propagates the summed token cross-entropy of the batch; returns each sample's sum [n], in nats.

    The sum over samples makes the gradient that arrives at a sample's activations that of its own loss.
    """
    picked, targets, owners = _labelled_outputs(model, batch)
    leaf = picked.detach().requires_grad_()
    losses = torch.zeros(
        len(batch), device=picked.device, dtype=torch.promote_types(picked.dtype, torch.float32)
    )
    for part, target, owner in zip(
        *(rows.split(_rows_at_once(model, picked)) for rows in (leaf, targets, owners)), strict=True
    ):
        logits = part if model.head is None else model.head(part)
        token_losses = F.cross_entropy(logits.to(losses.dtype), target, reduction="none")
        if len(target) and picked.requires_grad:
            token_losses.sum().backward()
        losses.index_add_(0, owner, token_losses.detach())
    if leaf.grad is not None:
        picked.backward(leaf.grad)
    return losses


def _labelled_outputs(model: LanguageModel, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
    """(outputs [t, h] or logits [t, v] that predict a labelled token, that token [t], its sample [t])."""
    inputs = {"input_ids": batch.input_ids, "attention_mask": batch.mask}
    if model.backbone is not None:
        outputs = model.backbone(**inputs, use_cache=False).last_hidden_state
    else:
        outputs = model.model(**inputs, use_cache=False).logits
    predicted = batch.labelled[:, 1:]
    owners, _ = predicted.nonzero(as_tuple=True)
    return outputs[:, :-1][predicted], batch.input_ids[:, 1:][predicted], owners


def _rows_at_once(model: LanguageModel, picked: Tensor) -> int:
    width = picked.shape[-1] if model.head is None else model.head.out_features
    return max(1, _LOGITS_AT_ONCE // int(width))
