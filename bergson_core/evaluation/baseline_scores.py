"""Scores to compare an index with that run the model: full gradients, and representations.

Full gradients are neither projected nor stored.

Legend: q queries, n documents, h hidden features, D numbers of a full gradient.
"""

from collections.abc import Iterator, Sequence
from typing import Final

import numpy as np
import torch
from jaxtyping import Float, Float32
from torch import Tensor

from bergson_core.errors import InvalidInput
from bergson_core.gradients.normalizers.normalizers import Normalizer
from bergson_core.gradients.processor import GradientProcessor
from bergson_core.gradients.row_collector import RowCollector
from bergson_core.models.hooks import freeze
from bergson_core.models.language_model import LanguageModel
from bergson_core.tokens.batching import BUDGET_TOKENS, Batch, iter_batches
from bergson_core.tokens.tokenization import Tokens

_MAX_QUERY_BYTES: Final = 2**30
"""Largest size of the queries' full gradients in memory; more queries are scored in several passes."""
_MAX_DOCUMENT_BYTES: Final = 2**28
"""Largest size of the documents' full gradients in memory."""


def gradient_scores(
    model: LanguageModel,
    documents: Sequence[Tokens],
    queries: Sequence[Tokens],
    modules: Sequence[str],
    normalizers: dict[str, Normalizer] | None = None,
) -> tuple[Float32[np.ndarray, "q n"], Float32[np.ndarray, "q n"]]:
    """Computes inner products and cosines of full gradients.

    The documents run through the model once for each group of queries whose gradients fit into 1 GiB.

    Args:
        model: The model whose gradients are taken.
        documents: Documents to score.
        queries: Queries to score them with.
        modules: Names of the modules whose gradients count.
        normalizers: Normalizers of the gradients, by module; by default gradients are not normalized.

    Returns:
        Inner products and cosines; a cosine with a gradient that is zero is 0.

    Source: without normalizers, the inner products are TracIn at one checkpoint (Pruthi et al., arXiv 2002.08484,
    section 3).
    """
    collector = RowCollector(model, GradientProcessor(None, normalizers), list(modules))
    gradient_bytes = 4 * collector.dimensions
    query_batch_size = max(1, _MAX_QUERY_BYTES // gradient_bytes)
    document_batch_size = max(1, _MAX_DOCUMENT_BYTES // gradient_bytes)
    dots = np.zeros((len(queries), len(documents)), dtype=np.float32)
    cosines = np.zeros_like(dots)
    for start in range(0, len(queries), query_batch_size):
        query_gradients = _full_gradients(collector, queries[start : start + query_batch_size])
        query_norms = torch.linalg.vector_norm(query_gradients, dim=1)[:, None]
        for positions, batch in _iter_batches(documents, document_batch_size, model):
            gradients = collector.collect(batch)[0].float()
            products = query_gradients @ gradients.mT
            norms = query_norms * torch.linalg.vector_norm(gradients, dim=1)
            cells = np.ix_(np.arange(start, start + len(query_gradients)), positions)
            dots[cells] = products.cpu()
            cosines[cells] = torch.where(norms > 0, products / norms, 0).cpu()
    return dots, cosines


def representation_scores(
    model: LanguageModel, documents: Sequence[Tokens], queries: Sequence[Tokens]
) -> Float32[np.ndarray, "q n"]:
    """Computes cosines of the last hidden states of documents and queries, averaged over positions.

    Raises:
        InvalidInput: The model does not return hidden states.
    """
    # Of a preference pair it is what was preferred.
    texts = [document.sequences[0] for document in documents]
    query_features, document_features = (_representations(model, tokens) for tokens in (queries, texts))
    return (query_features @ document_features.mT).cpu().numpy()


def _full_gradients(collector: RowCollector, tokens: Sequence[Tokens]) -> Float[Tensor, "q D"]:
    gradients = torch.zeros(len(tokens), collector.dimensions, device=collector.device)
    for batch in iter_batches(tokens, BUDGET_TOKENS, collector.device):
        gradients[batch.indices] = collector.collect(batch)[0].float()
    return gradients


def _iter_batches(
    documents: Sequence[Tokens], max_documents: int, model: LanguageModel
) -> Iterator[tuple[np.ndarray, Batch]]:
    """Yields batches of at most `max_documents` documents, shortest first, with their positions in `documents`."""
    order = np.argsort([len(document.ids) for document in documents], kind="stable")
    for start in range(0, len(order), max_documents):
        positions = order[start : start + max_documents]
        chunk = [documents[position] for position in positions]
        for batch in iter_batches(chunk, BUDGET_TOKENS, model.device):
            yield positions[batch.indices], batch


def _representations(model: LanguageModel, tokens: Sequence[Tokens]) -> Float[Tensor, "n h"]:
    """Returns mean last hidden states, scaled to unit length."""
    parts: list[tuple[np.ndarray, Tensor]] = []
    with torch.no_grad(), freeze(model.model):
        for batch in iter_batches(tokens, BUDGET_TOKENS, model.device):
            outputs = model.model(
                input_ids=batch.input_ids,
                attention_mask=batch.mask,
                output_hidden_states=True,
                use_cache=False,
            )
            if getattr(outputs, "hidden_states", None) is None:
                raise InvalidInput(
                    f"{type(model.model).__name__} returns no hidden states; leave out the baseline representation"
                )
            hidden = outputs.hidden_states[-1].float()
            mask = torch.ones_like(batch.input_ids) if batch.mask is None else batch.mask
            mean = (hidden * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)
            parts.append((batch.indices, torch.nn.functional.normalize(mean, dim=1)))
    representations = torch.zeros(len(tokens), parts[0][1].shape[1], device=model.device)
    for numbers, means in parts:
        representations[numbers] = means
    return representations
