"""Weights of modules in a score, estimated without gold from how far the halves of a module's numbers agree.

Legend: s documents that stand for queries, n documents, m modules, d = p² numbers per module.

A block is a matrix p × p, projected from the left and from the right. Its four quarters are estimates of the same
cosine. Two quarters that lie diagonally to each other share neither projection, so that their noise is independent:
what they agree on over documents is signal. With x the cosine of whole blocks, centred for each document that stands
for a query, and a, b, c, d the centred cosines of the quarters in reading order,

    signal = ½ (mean a·d + mean b·c)        noise = mean x² - signal

The weight of a module is √signal / noise (`agreement`): best if all modules tell the same, each with its own noise.
`shrunk` is signal / (signal + noise): best if the signals of modules are independent of each other and are to be added.
"""

from collections.abc import Callable, Mapping
from typing import Final

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import normalize

from benchmarks.quality.module_products import ModuleProducts


def halves_agreement(
    sample: Float[Tensor, "s d"], documents: Float[Tensor, "n d"], own: Float[Tensor, " s"]
) -> tuple[Tensor, Tensor]:
    """Returns signal and noise of a module's cosines.

    Args:
        sample: Blocks of documents that stand for queries.
        documents: Blocks of all documents, as they are stored.
        own: Positions of the sample among the documents; no document is compared with itself.
    """
    side = round(sample.shape[1] ** 0.5)
    half = side // 2
    sample, documents = (normalize(rows, dim=1).unflatten(1, (side, side)) for rows in (sample, documents))
    first, second = slice(0, half), slice(half, side)
    quarters = {
        (row == first, column == first): _centred(
            4 * sample[:, row, column].flatten(1) @ documents[:, row, column].flatten(1).mT, own
        )
        for row in (first, second)
        for column in (first, second)
    }
    signal = _mean(quarters[True, True] * quarters[False, False], own)
    signal = (signal + _mean(quarters[True, False] * quarters[False, True], own)) / 2
    whole = sum(quarters.values(), torch.zeros(())) / 4
    total = _mean(whole.square(), own)
    signal = signal.clamp(torch.zeros(()), total)
    return signal, total - signal


def _centred(scores: Float[Tensor, "s n"], own: Tensor) -> Float[Tensor, "s n"]:
    """Returns scores less the mean of their row, with 0 where a document meets itself."""
    rows = torch.arange(len(scores))
    scores[rows, own] = 0
    scores -= scores.sum(1, keepdim=True) / (scores.shape[1] - 1)
    scores[rows, own] = 0
    return scores


def _mean(values: Float[Tensor, "s n"], own: Tensor) -> Tensor:
    return values.sum() / (values.numel() - len(own))


def _agreement(table: ModuleProducts) -> Float[Tensor, " m"]:
    return table.signal.sqrt() / table.noise.clamp_min(torch.finfo(torch.float32).tiny)


def _shrunk(table: ModuleProducts) -> Float[Tensor, " m"]:
    return table.signal / (table.signal + table.noise).clamp_min(torch.finfo(torch.float32).tiny)


MODULE_WEIGHTS: Final[Mapping[str, Callable[[ModuleProducts], Float[Tensor, " m"]]]] = {
    "agreement": _agreement,
    "shrunk": _shrunk,
}
"""Name of a way to weigh modules → function that returns the weights."""
