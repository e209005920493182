"""Products with the Gauss-Newton matrix are those of its definition, of derivatives by autograd in float64."""

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.func import functional_call, jacrev

from benchmarks.quality.conjugate_gradients.gauss_newton import GaussNewton
from bergson_core.errors import InvalidInput
from bergson_core.models.language_model import as_language_model
from bergson_core.models.modules import TrackedModule
from bergson_core.tokens.tokenization import Tokens
from tests import tiny


def make_documents() -> list[Tokens]:
    rng = np.random.default_rng(0)
    documents = [
        Tokens.labelled_from(rng.integers(tiny.VOCABULARY, size=length), first)
        for length, first in ((5, 1), (3, 1), (6, 4))
    ]
    return [replace(documents[0], weight=2.0), *documents[1:]]


def gauss_newton_by_definition(
    network: torch.nn.Module, documents: list[Tokens], tracked: TrackedModule
) -> Tensor:
    """Returns the matrix [w, w] of a module's w weights, in the order in which the module keeps them."""
    weight_name = f"{tracked.name}.weight"
    weight = network.get_parameter(weight_name).detach()
    total = torch.zeros(weight.numel(), weight.numel(), dtype=torch.float64)
    for tokens in documents:
        ids = torch.from_numpy(tokens.ids)[None]
        positions = np.flatnonzero(tokens.labels) - 1

        def run(weight: Tensor, ids: Tensor = ids, positions: np.ndarray = positions) -> Tensor:
            return functional_call(network, {weight_name: weight}, kwargs={"input_ids": ids}).logits[
                0, positions
            ]

        jacobian = jacrev(run)(weight).flatten(2)
        probabilities = run(weight).softmax(-1)
        curvature = torch.diag_embed(probabilities) - probabilities[:, :, None] * probabilities[:, None]
        total += tokens.weight * (jacobian.mT @ curvature @ jacobian).sum(0)
    return total / len(documents)


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "gpt_neox"])
def test_products_are_those_of_the_definition(architecture: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "benchmarks.quality.conjugate_gradients.gauss_newton._BATCH_TOKENS", 10
    )  # two batches
    monkeypatch.setattr("benchmarks.quality.conjugate_gradients.gauss_newton._VECTORS", 2)
    network, documents = tiny.model(architecture).requires_grad_(False), make_documents()
    model = as_language_model(network)
    modules = model.select_modules()
    for name, tracked in (min(modules.items()), max(modules.items())):  # of the first layer and of the last
        matrix = gauss_newton_by_definition(network, documents, tracked)
        vectors = torch.randn(3, tracked.out_features, tracked.in_features, dtype=torch.float64)
        product = GaussNewton(model, documents, {name: tracked}).multiply({name: vectors})[name]
        stored = (vectors.mT if tracked.transposed else vectors).flatten(1)
        shape = vectors.mT.shape if tracked.transposed else vectors.shape
        expected = (stored @ matrix).view(shape)
        torch.testing.assert_close(product, expected.mT if tracked.transposed else expected)


def test_products_of_several_modules_have_what_modules_share() -> None:
    network, documents = tiny.model("llama").requires_grad_(False), make_documents()
    model = as_language_model(network)
    modules = model.select_modules()
    matrix = GaussNewton(model, documents, modules)
    left, right = (
        {
            name: torch.randn(1, tracked.out_features, tracked.in_features, dtype=torch.float64)
            for name, tracked in modules.items()
        }
        for _ in range(2)
    )
    products = matrix.multiply(right)
    crossed = sum((left[name] * products[name]).sum() for name in modules)
    expected = torch.zeros((), dtype=torch.float64)
    weights = {f"{name}.weight": network.get_parameter(f"{name}.weight") for name in modules}
    for tokens in documents:
        ids, positions = torch.from_numpy(tokens.ids)[None], np.flatnonzero(tokens.labels) - 1

        def run(
            weights: Mapping[str, Tensor], ids: Tensor = ids, positions: np.ndarray = positions
        ) -> Tensor:
            return functional_call(network, dict(weights), kwargs={"input_ids": ids}).logits[0, positions]

        moved = [
            sum(
                (jacobian.flatten(2) @ side[name.removesuffix(".weight")].flatten()[None, :, None])[..., 0]
                for name, jacobian in jacrev(run)(weights).items()
            )
            for side in (left, right)
        ]
        probabilities = run(weights).softmax(-1)
        centred = moved[1] - (probabilities * moved[1]).sum(-1, keepdim=True)
        expected += tokens.weight * (moved[0] * probabilities * centred).sum() / len(documents)
    torch.testing.assert_close(crossed, expected)


def test_a_model_whose_head_is_tracked_is_refused() -> None:
    model = as_language_model(tiny.model("llama"))
    head = model.select_modules("lm_head")
    with pytest.raises(InvalidInput, match="expected a model with a linear head that is not tracked"):
        GaussNewton(model, make_documents(), head)
