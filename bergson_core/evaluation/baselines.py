"""Scores to compare an index with: plain gradients, whole and unprojected, and the model's representations.

Legend: q queries, n documents, m layers, h hidden features.
"""

from collections.abc import Iterator, Sequence
from typing import Final

import numpy as np
import torch
from jaxtyping import Float, Float32
from torch import Tensor

from bergson_core.data.batching import BUDGET_TOKENS, Batch, Tokens, batches
from bergson_core.errors import InvalidInput
from bergson_core.gradients.normalizers import Normalizer
from bergson_core.gradients.processor import GradientProcessor
from bergson_core.gradients.row_collector import RowCollector
from bergson_core.models.hooks import frozen
from bergson_core.models.loading import LanguageModel

_QUERIES_BYTES: Final = 2**30
_DOCUMENTS_BYTES: Final = 2**28
"""Of whole gradients in memory at a time."""


def gradient_scores(
    model: LanguageModel,
    documents: Sequence[Tokens],
    queries: Sequence[Tokens],
    modules: Sequence[str],
    normalizers: dict[str, Normalizer] | None = None,
) -> tuple[Float32[np.ndarray, "q n"], Float32[np.ndarray, "q n"]]:
    """(inner products, cosines) of the whole gradients of these modules, normalized but not projected.

    The documents run through the model once for as many queries as have gradients of 1 GiB. Without `normalizers`
    this is TracIn at one checkpoint (Pruthi et al., arXiv 2002.08484, section 3).
    """
    collector = RowCollector(model, GradientProcessor(None, normalizers), list(modules))
    size = 4 * collector.dimensions
    at_once = max(1, _QUERIES_BYTES // size)
    dots = np.zeros((len(queries), len(documents)), dtype=np.float32)
    cosines = np.zeros_like(dots)
    for start in range(0, len(queries), at_once):
        asked = _whole(collector, queries[start : start + at_once])
        of_queries = torch.linalg.vector_norm(asked, dim=1)[:, None]
        for numbers, batch in _few(documents, max(1, _DOCUMENTS_BYTES // size), model):
            rows = collector.collect(batch)[0].float()
            found = asked @ rows.mT
            lengths = of_queries * torch.linalg.vector_norm(rows, dim=1)
            here = np.ix_(np.arange(start, start + len(asked)), numbers)
            dots[here] = found.cpu()
            cosines[here] = torch.where(lengths > 0, found / lengths, 0).cpu()
    return dots, cosines


def representation_scores(
    model: LanguageModel, documents: Sequence[Tokens], queries: Sequence[Tokens]
) -> Float32[np.ndarray, "q n"]:
    """Cosines of the mean last hidden states of documents and queries.

    Raises `InvalidInput` for a model that does not give them.
    """
    asked, known = (_representations(model, one) for one in (queries, documents))
    return (asked @ known.mT).cpu().numpy()


def _whole(collector: RowCollector, tokens: Sequence[Tokens]) -> Float[Tensor, "q D"]:
    rows = torch.zeros(len(tokens), collector.dimensions, device=collector.device)
    for batch in batches(tokens, BUDGET_TOKENS, collector.device):
        rows[batch.numbers] = collector.collect(batch)[0].float()
    return rows


def _few(documents: Sequence[Tokens], most: int, model: LanguageModel) -> Iterator[tuple[np.ndarray, Batch]]:
    """Batches of at most `most` documents, with their numbers among all."""
    order = np.argsort([len(one.ids) for one in documents], kind="stable")
    for start in range(0, len(order), most):
        part = order[start : start + most]
        for batch in batches([documents[k] for k in part], BUDGET_TOKENS, model.device):
            yield part[batch.numbers], batch


def _representations(model: LanguageModel, tokens: Sequence[Tokens]) -> Float[Tensor, "n h"]:
    """Of unit length."""
    found: list[tuple[np.ndarray, Tensor]] = []
    with torch.no_grad(), frozen(model.model):
        for batch in batches(tokens, BUDGET_TOKENS, model.device):
            outputs = model.model(
                input_ids=batch.input_ids,
                attention_mask=batch.mask,
                output_hidden_states=True,
                use_cache=False,
            )
            if getattr(outputs, "hidden_states", None) is None:
                raise InvalidInput(
                    f"{type(model.model).__name__} gives no hidden states; leave representation out"
                )
            last = outputs.hidden_states[-1].float()
            mask = torch.ones_like(batch.input_ids) if batch.mask is None else batch.mask
            mean = (last * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)
            found.append((batch.numbers, torch.nn.functional.normalize(mean, dim=1)))
    rows = torch.zeros(len(tokens), found[0][1].shape[1], device=model.device)
    for numbers, means in found:
        rows[numbers] = means
    return rows
