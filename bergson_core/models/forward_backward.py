"""One forward and backward pass for a batch of documents: the only code that computes a loss.

Legend: n samples, q sequences (as many, or two for each preference pair), s positions, t labelled tokens of the whole
batch, h hidden features, v vocabulary.

With frozen parameters and a capture open (`hooks.capture`), the backward pass computes the gradients of activations
only. Logits are computed for labelled tokens only, a chunk at a time. Logits [n, s, v] are formed only for a model that
is not a backbone and a linear head (`LanguageModel`).
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Final

import numpy as np
import torch
from jaxtyping import Float, Float64, Int
from torch import Tensor
from torch.nn import functional as F

from bergson_core.models.hooks import freeze
from bergson_core.models.language_model import LanguageModel
from bergson_core.models.offloading import reload_in_backward
from bergson_core.tokens.batching import BUDGET_TOKENS, Batch, iter_batches
from bergson_core.tokens.preference_pairs import PairLoss
from bergson_core.tokens.tokenization import Tokens

MAX_LOGITS_IN_MEMORY: Final = 2**24
"""Logits that are in memory at a time: 64 MiB in float32."""
LEAST_DOUBT: Final = 1e-5
"""The least 1 - p of a token whose log-odds count. float32 knows less of what is nearer to certainty."""


def forward_backward(
    model: LanguageModel, batch: Batch, sampler: torch.Generator | None = None
) -> Float[Tensor, " {len(batch)}"]:
    """Back-propagates the token cross-entropy of a batch, weighted by the batch's weights and summed over its samples.

    Because of the sum over samples, the gradient that arrives at a sample's activations is that of the sample's own
    loss. Of samples with `log_odds` the loss of a token is log (1 - p) / p, whose gradient is that of -log p divided by
    1 - p, or by `LEAST_DOUBT` where that is larger. The loss of a preference pair is that of DPO
    (`tokens.preference_pairs`): its two sequences have weights that follow from the log-probabilities of both.

    Args:
        model: The model, on its device.
        batch: n samples.
        sampler: A generator on the model's device. With it, labels are drawn from the model's predictions in place of
            the documents' own: the mean squares of such gradients are the diagonal of the Fisher information.

    Returns:
        Each sample's sum of token cross-entropies [n], or the loss of the pair, without the weights, in nats.

    Source: Kunstner et al., arXiv 1905.12558, section 3, for labels from the model; Park et al., TRAK, arXiv
    2303.14186, section 2.3, for log-odds as what is attributed.
    """
    with reload_in_backward(model.model):
        return _forward_backward(model, batch, sampler)


def _forward_backward(
    model: LanguageModel, batch: Batch, sampler: torch.Generator | None
) -> Float[Tensor, " {len(batch)}"]:
    outputs, targets, sequences = _run_labelled(model, batch)
    if batch.pairs is not None:
        return _back_propagate_pairs(model, batch, batch.pairs, outputs, targets, sequences)
    losses = _empty_losses(batch, outputs)
    weights = None if batch.weights is None else batch.weights.to(sequences.device)[sequences]
    log_odds = None if batch.log_odds is None else batch.log_odds.to(sequences.device)[sequences]
    leaf = outputs.detach().requires_grad_()
    for chunk, logits in _iter_logits(model, leaf, losses.dtype):
        target = targets[chunk]
        if sampler is not None:
            target = logits.detach().softmax(-1).multinomial(1, generator=sampler)[:, 0]
        token_losses = F.cross_entropy(logits, target, reduction="none")
        if outputs.requires_grad:
            weighted = token_losses if weights is None else token_losses * weights[chunk].to(token_losses)
            if log_odds is not None:
                doubt = -torch.expm1(-token_losses.detach())
                weighted = weighted / torch.where(log_odds[chunk], doubt.clamp_min(LEAST_DOUBT), 1)
            weighted.sum().backward()
        losses.index_add_(0, sequences[chunk], token_losses.detach())
    if leaf.grad is not None:
        outputs.backward(leaf.grad)
    return losses


def _back_propagate_pairs(
    model: LanguageModel, batch: Batch, pairs: PairLoss, outputs: Tensor, targets: Tensor, sequences: Tensor
) -> Float[Tensor, " {len(batch)}"]:
    """Back-propagates the loss of preference pairs, and returns it [n].

    The head runs twice: the weights of the sequences follow from their losses.
    """
    losses = _empty_losses(batch, outputs)
    with torch.no_grad():
        for chunk, logits in _iter_logits(model, outputs, losses.dtype):
            losses.index_add_(0, sequences[chunk], F.cross_entropy(logits, targets[chunk], reduction="none"))
    pair_losses, weights = pairs.losses_and_weights(losses)
    if not outputs.requires_grad:
        return pair_losses
    if batch.weights is not None:
        weights = weights * batch.weights.to(weights.device).repeat_interleave(2)
    leaf, token_weights = outputs.detach().requires_grad_(), weights[sequences]
    for chunk, logits in _iter_logits(model, leaf, losses.dtype):
        token_losses = F.cross_entropy(logits, targets[chunk], reduction="none")
        (token_losses * token_weights[chunk].to(token_losses)).sum().backward()
    if leaf.grad is not None:
        outputs.backward(leaf.grad)
    return pair_losses


def _empty_losses(batch: Batch, outputs: Tensor) -> Float[Tensor, " q"]:
    """Returns a zero for each sequence."""
    dtype = torch.promote_types(outputs.dtype, torch.float32)
    return torch.zeros(len(batch.input_ids), device=outputs.device, dtype=dtype)


def _iter_logits(model: LanguageModel, outputs: Tensor, dtype: torch.dtype) -> Iterator[tuple[slice, Tensor]]:
    """Yields the logits of some labelled tokens at a time, and which these are among all."""
    logit_width = outputs.shape[-1] if model.head is None else model.head.out_features
    chunk_size = max(1, MAX_LOGITS_IN_MEMORY // int(logit_width))
    for start in range(0, len(outputs), chunk_size):
        chunk = slice(start, start + chunk_size)
        part = outputs[chunk]
        yield chunk, (part if model.head is None else model.head(part)).to(dtype)


def compute_document_losses(
    model: LanguageModel,
    documents: Sequence[Tokens],
    budget_tokens: int = BUDGET_TOKENS,
    tick: Callable[[], object] = lambda: None,
) -> Float64[np.ndarray, " n"]:
    """Returns each document's sum of token cross-entropies [n], in nats, from forward passes only.

    Args:
        model: The model, on its device.
        documents: The n tokenised documents.
        budget_tokens: The most tokens of a batch, padding included.
        tick: Called after each batch. The model is as it was before: `tick` may answer queries with it.
    """
    losses = np.zeros(len(documents))
    for batch in iter_batches(documents, budget_tokens, model.device):
        with torch.no_grad(), freeze(model.model):
            losses[batch.indices] = forward_backward(model, batch).double().cpu().numpy()
        tick()
    return losses


def compute_next_token_losses(
    model: LanguageModel,
    documents: Sequence[Tokens],
    choices: Int[np.ndarray, "n c"],
    budget_tokens: int = BUDGET_TOKENS,
    tick: Callable[[], object] = lambda: None,
) -> Float64[np.ndarray, "n c"]:
    """Returns the cross-entropy [n, c] of each of c choices for the last token of each document, in nats.

    The model runs forward once for all choices of a document.

    Args:
        model: The model, on its device.
        documents: The n documents, of which only the last token is labelled; it is ignored.
        choices: Token ids [n, c].
        budget_tokens: The most tokens of a batch, padding included.
        tick: Called after each batch, as in `compute_document_losses`.
    """
    losses = np.zeros(choices.shape)
    for batch in iter_batches(documents, budget_tokens, model.device):
        with torch.no_grad(), freeze(model.model):
            outputs, _, samples = _run_labelled(model, batch)
            logits = outputs if model.head is None else model.head(outputs)
            numbers = batch.indices[samples.cpu().numpy()]
            log_probabilities = logits.double().log_softmax(-1)
            chosen = torch.from_numpy(choices[numbers]).to(logits.device)
            losses[numbers] = -log_probabilities.gather(1, chosen).cpu().numpy()
        tick()
    return losses


def _run_labelled(model: LanguageModel, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
    """Runs the model, and returns what it predicts labelled tokens from.

    Returns:
        (outputs [t, h] of the backbone or logits [t, v], the labelled token that each predicts [t], its sequence [t]).
    """
    inputs = {"input_ids": batch.input_ids, "attention_mask": batch.mask}
    if model.backbone is not None:
        outputs = model.backbone(**inputs, use_cache=False).last_hidden_state
    else:
        outputs = model.model(**inputs, use_cache=False).logits
    is_label = batch.labelled[:, 1:]
    samples, _ = is_label.nonzero(as_tuple=True)
    is_label, ids, samples = (tensor.to(outputs.device) for tensor in (is_label, batch.input_ids, samples))
    return outputs[:, :-1][is_label], ids[:, 1:][is_label], samples
