"""One forward and backward pass for a batch of documents: the only place where a loss is computed.

Legend: n samples, s positions, t labelled tokens of the whole batch, h hidden features, v vocabulary.

With frozen parameters and a capture open (`hooks.capture`), the backward pass computes activation gradients
only. Logits exist for labelled tokens only, a chunk at a time; [n, s, v] is formed only for a model that is not
its backbone and a linear head (`models.LanguageModel`).
"""

from collections.abc import Callable, Sequence
from typing import Final

import numpy as np
import torch
from jaxtyping import Float, Float64
from torch import Tensor
from torch.nn import functional as F

from bergson_core.data.batching import BUDGET_TOKENS, Batch, Tokens, iter_batches
from bergson_core.models.hooks import freeze
from bergson_core.models.language_model import LanguageModel

MAX_LOGITS_IN_MEMORY: Final = 2**24
"""Numbers of the logits that exist at a time."""


def forward_backward(
    model: LanguageModel, batch: Batch, sampler: torch.Generator | None = None
) -> Float[Tensor, " {len(batch)}"]:
    """Back-propagates the weighted token cross-entropy of the batch; returns each sample's plain sum [n], in nats.

    The sum over samples makes the gradient that arrives at a sample's activations that of its own loss. With
    `sampler`, a generator of the model's device, the labels are drawn from what the model predicts instead of the
    documents' own: squares of such gradients are those of the Fisher information (Kunstner et al.,
    arXiv 1905.12558, section 3).
    """
    picked, targets, owners = _labelled_outputs(model, batch)
    weights = None if batch.weights is None else batch.weights[owners]
    leaf = picked.detach().requires_grad_()
    losses = torch.zeros(
        len(batch), device=picked.device, dtype=torch.promote_types(picked.dtype, torch.float32)
    )
    at_once = _rows_at_once(model, picked)
    for start in range(0, len(leaf), at_once):
        here = slice(start, start + at_once)
        part, target, owner = leaf[here], targets[here], owners[here]
        logits = (part if model.head is None else model.head(part)).to(losses.dtype)
        if sampler is not None:
            target = logits.detach().softmax(-1).multinomial(1, generator=sampler)[:, 0]
        token_losses = F.cross_entropy(logits, target, reduction="none")
        if picked.requires_grad:
            scaled = token_losses if weights is None else token_losses * weights[here].to(token_losses)
            scaled.sum().backward()
        losses.index_add_(0, owner, token_losses.detach())
    if leaf.grad is not None:
        picked.backward(leaf.grad)
    return losses


def compute_document_losses(
    model: LanguageModel,
    documents: Sequence[Tokens],
    budget_tokens: int = BUDGET_TOKENS,
    tick: Callable[[], object] = lambda: None,
) -> Float64[np.ndarray, " n"]:
    """The plain sum of each document's token cross-entropies, in nats, forward only; `tell` is called between batches.

    Between batches the model is as it was: `tell` may answer others with it.
    """
    found = np.zeros(len(documents))
    for batch in iter_batches(documents, budget_tokens, model.device):
        with torch.no_grad(), freeze(model.model):
            found[batch.indices] = forward_backward(model, batch).double().cpu().numpy()
        tick()
    return found


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
    return max(1, MAX_LOGITS_IN_MEMORY // int(width))
