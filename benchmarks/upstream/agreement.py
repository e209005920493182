"""Checks that EleutherAI's bergson was given the right tokens: its inner products are those of plain autograd."""

from typing import Any, cast

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from benchmarks.models.cases import Case
from benchmarks.upstream.score_tables import ScoreTable
from bergson_core.tokens.tokenization import Tokens


def largest_deviation(case: Case, table: ScoreTable, documents: int = 8, queries: int = 4) -> float:
    """Returns the largest difference from autograd's inner products, as a share of the largest one.

    Args:
        case: Model, documents and queries.
        table: Inner products of whole gradients.
        documents: Number of documents to compare, spread over all of them.
        queries: Number of queries to compare, the first ones.
    """
    numbers = range(0, len(case.documents), max(1, len(case.documents) // documents))
    document_rows = torch.stack([_gradient(case, table, case.documents[number]) for number in numbers])
    query_rows = torch.stack([_gradient(case, table, query) for query in case.queries[:queries]])
    expected = query_rows @ document_rows.T
    actual = torch.from_numpy(table.scores[:queries, list(numbers)])
    return float((actual - expected).abs().max() / expected.abs().max())


def _gradient(case: Case, table: ScoreTable, text: Tokens) -> Tensor:
    """Returns the gradient of the sum of the losses of a text's labelled tokens, for the weights of the modules."""
    model = cast(Any, case.model.model)
    weights = [model.base_model.get_submodule(name).weight.requires_grad_(True) for name in table.modules]
    ids = torch.from_numpy(text.ids)[None]
    losses = cross_entropy(model(input_ids=ids).logits[0, :-1], ids[0, 1:], reduction="none")
    loss = losses[torch.from_numpy(text.labels[1:])].sum()
    gradients = torch.autograd.grad(loss, weights)
    for weight in weights:
        weight.requires_grad_(False)
    return torch.cat([gradient.flatten() for gradient in gradients])
