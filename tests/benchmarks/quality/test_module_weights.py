"""The agreement of halves tells signal from the noise of projections."""

import torch
from torch import Tensor

from benchmarks.quality.module_products import ModuleProducts
from benchmarks.quality.module_weights import MODULE_WEIGHTS, halves_agreement

SIDE, RANK, DOCUMENTS = 16, 6, 300


def project(gradients: Tensor, seed: int) -> Tensor:
    """Returns gradients [n, o, i], projected from both sides and flattened."""
    generator = torch.Generator().manual_seed(seed)
    left, right = (torch.randn(SIDE, size, generator=generator) for size in gradients.shape[1:])
    return (left @ gradients @ right.mT).flatten(1)


def make_gradients(shared: float) -> Tensor:
    """Gradients of documents of a few kinds, which agree with each other as far as `shared` says."""
    generator = torch.Generator().manual_seed(1)
    kinds = torch.randn(RANK, 60, 40, generator=generator)
    own = torch.randn(DOCUMENTS, 60, 40, generator=generator)
    return shared * kinds[torch.arange(DOCUMENTS) % RANK] + own


def estimate(shared: float) -> tuple[Tensor, Tensor]:
    rows, own = project(make_gradients(shared), seed=2), torch.arange(40)
    return halves_agreement(rows[own], rows, own)


def test_the_signal_of_cosines_is_the_variance_of_whole_ones() -> None:
    whole = torch.nn.functional.normalize(make_gradients(1.0).flatten(1), dim=1)
    cosines = whole[:40] @ whole.mT
    cosines[torch.arange(40), torch.arange(40)] = float("nan")
    variance = (cosines - cosines.nanmean(1, keepdim=True)).square().nanmean()
    signal, noise = estimate(1.0)
    assert 0.5 * variance < signal < 1.5 * variance
    assert noise > 0


def test_gradients_that_have_nothing_in_common_have_no_signal() -> None:
    signal, noise = estimate(0.0)
    assert signal < 0.1 * noise
    assert noise > 0.5 / SIDE**2


def test_modules_with_more_signal_weigh_more() -> None:
    signal, noise = map(torch.stack, zip(*(estimate(shared) for shared in (0.2, 1.0)), strict=True))
    table = ModuleProducts(("a", "b"), *torch.zeros(3, 2, 1, 1), signal, noise)
    for weigh in MODULE_WEIGHTS.values():
        first, second = weigh(table)
        assert 0 <= first < second
