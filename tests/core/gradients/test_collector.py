"""The gradients of `GradientCollector` and `RowCollector` are those of a plain loop of autograd in float64."""

import numpy as np
import pytest
import torch
from torch import nn

from bergson_core import GradientCollector, GradientProcessor
from bergson_core.errors import InvalidInput
from bergson_core.gradients.normalizers.normalizers import DAMPING
from bergson_core.gradients.processor_fitting import fit_normalizers
from bergson_core.gradients.row_collector import RowCollector
from bergson_core.models.language_model import as_language_model
from bergson_core.models.tracking.selection import select_modules
from bergson_core.tokens.batching import iter_batches
from bergson_core.tokens.tokenization import Tokens
from tests import reference, tiny
from tests.core.helpers import damped_root

ARCHITECTURES = sorted(tiny.ARCHITECTURES)
EXACT = {"rtol": 1e-8, "atol": 1e-10}


def documents(first_label: int = 1) -> list[Tokens]:
    """Returns documents of different lengths, so that a batch is padded."""
    rng = np.random.default_rng(0)
    return [
        Tokens.labelled_from(rng.integers(0, tiny.VOCABULARY, size=s), first_label) for s in (9, 14, 5, 14, 7)
    ]


def normalize(whole: torch.Tensor, kind: str, sides: list[tuple[torch.Tensor, torch.Tensor]]) -> torch.Tensor:
    """Normalizes full gradients [n, o, i] by definition; `sides` are (a [s, i], g [s, o]) of each document."""
    if kind == "none":
        return whole
    if kind == "kfac":
        a, g = (torch.cat(side) for side in zip(*sides, strict=True))
        left, right = (damped_root(side[g.abs().sum(1) > 0]) for side in (g, a))
        return left @ whole @ right
    second = whole.square().mean(0)
    if kind == "adam":
        return whole / (second + DAMPING * second.mean()).sqrt()
    row, column = second.mean(1), second.mean(0)
    row, column = row + DAMPING * row.mean(), column + DAMPING * column.mean()
    return whole / (torch.outer(row, column) / row.mean()).sqrt()


PROJECTIONS = [(None, None), ("rademacher", 5), ("orthogonal", 5), ("orthogonal", 40)]
"""Kinds with p; at 40 one side of a module stays whole."""
COMBINATIONS = [
    (ARCHITECTURES[number % len(ARCHITECTURES)], *combination)
    for number, combination in enumerate(
        (kind, *projection, bias)
        for kind in ("none", "adafactor", "adam", "kfac")
        for projection in PROJECTIONS
        for bias in (False, True)
    )
]
"""All of them under one of the architectures each, so that each pair of two settings occurs."""


@pytest.mark.parametrize(("architecture", "kind", "projection", "p", "bias"), COMBINATIONS)
def test_rows_of_padded_batches_are_those_of_plain_autograd(architecture, kind, projection, p, bias):
    model, seed = tiny.model(architecture), 3
    docs = documents(first_label=3)
    modules = select_modules(model)
    whole = reference.gradients(model, list(modules), docs, bias)
    sides = reference.inputs_and_output_gradients(model, list(modules), docs, bias)
    fitted = fit_normalizers(
        as_language_model(model), modules, iter_batches(docs, 40), kind, include_bias=bias
    )
    processor = GradientProcessor(p, fitted, seed, include_bias=bias, projection=projection or "orthogonal")
    collector = RowCollector(as_language_model(model), processor)
    rows = torch.zeros(len(docs), collector.dimensions, dtype=torch.float64)
    for batch in iter_batches(docs, 60):
        rows[batch.indices], _ = collector.collect(batch)
    for name in modules:
        expected = normalize(whole[name], kind, sides[name])
        if projection:
            expected = reference.project(expected, name, p, seed, projection)
        torch.testing.assert_close(rows[:, collector.slices[name]], expected.flatten(1), **EXACT)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_losses_are_the_summed_cross_entropies(architecture):
    model, docs = tiny.model(architecture), documents(first_label=4)
    collector = RowCollector(as_language_model(model), GradientProcessor(4))
    for batch in iter_batches(docs, 60):
        _, losses = collector.collect(batch)
        expected = torch.stack([reference.loss_of(model, docs[k]) for k in batch.indices]).detach()
        torch.testing.assert_close(losses, expected, **EXACT)


@pytest.mark.parametrize("kind", ["adafactor", "adam", "kfac"])
def test_a_projection_wider_than_a_module_keeps_inner_products(kind):
    model, docs = tiny.model(), documents()
    modules = select_modules(model, ["gpt_neox.layers.0.attention.dense"])
    fitted = fit_normalizers(as_language_model(model), modules, iter_batches(docs, 60), kind)
    whole, wide = (
        torch.cat(
            [
                RowCollector(as_language_model(model), processor, list(modules)).collect(batch)[0]
                for batch in work
            ]
        )
        for work in [list(iter_batches(docs, 60))]
        for processor in (GradientProcessor(None, fitted), GradientProcessor(200, fitted))
    )
    assert wide.shape[1] == 200**2 > whole.shape[1]
    torch.testing.assert_close(wide @ wide.T, whole @ whole.T, rtol=0.3, atol=0.05 * (whole @ whole.T).max())


def test_a_collector_without_a_processor_gives_raw_gradients_in_natural_order():
    model = tiny.model("gpt2")
    ids = torch.randint(0, tiny.VOCABULARY, (3, 6))
    with GradientCollector(model) as collector:
        loss = nn.functional.cross_entropy(
            model(input_ids=ids).logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten(), reduction="sum"
        )
        loss.backward()
    names = list(collector.gradients)
    assert names == sorted(names, key=lambda name: [int(p) if p.isdigit() else 0 for p in name.split(".")])
    for name, gradient in collector.gradients.items():
        module = model.get_submodule(name)
        assert gradient.shape == (3, module.nf, module.nx)
        torch.testing.assert_close(gradient.sum(0), module.weight.grad.T, **EXACT)


def test_a_closure_gets_each_gradient_and_the_collector_keeps_none():
    model, seen = tiny.model(), {}
    with GradientCollector(model, GradientProcessor(4), closure=seen.__setitem__) as collector:
        model(input_ids=torch.zeros(2, 5, dtype=torch.long)).logits.sum().backward()
    assert collector.gradients == {}
    assert {tuple(gradient.shape) for gradient in seen.values()} == {(2, 4, 4)}
    assert set(seen) == set(collector.modules)


def test_nothing_stays_on_the_model_after_the_collector_closes():
    model = tiny.model()
    before = {name: vars(module).keys() for name, module in model.named_modules()}
    with pytest.raises(ZeroDivisionError), GradientCollector(model):
        raise ZeroDivisionError
    assert all(not module._forward_hooks and not module._forward_pre_hooks for module in model.modules())
    assert before == {name: vars(module).keys() for name, module in model.named_modules()}


def test_collecting_rows_leaves_parameters_and_training_mode_as_they_were():
    model = tiny.model().train()
    model.gpt_neox.embed_in.weight.requires_grad_(False)
    before = [parameter.requires_grad for parameter in model.parameters()]
    RowCollector(as_language_model(model), GradientProcessor(4)).collect(next(iter_batches(documents(), 100)))
    assert [parameter.requires_grad for parameter in model.parameters()] == before
    assert model.training
    assert all(parameter.grad is None for parameter in model.parameters())


def test_a_document_without_a_labelled_token_has_a_zero_row_and_no_loss():
    docs = [
        Tokens.labelled_from(np.array([5]), 1),
        Tokens.labelled_from(np.array([5, 6, 7]), 1),
        Tokens.labelled_from(np.array([5, 6, 7]), 3),
    ]
    collector = RowCollector(as_language_model(tiny.model()), GradientProcessor(4))
    (batch,) = iter_batches(docs, 100)
    rows, losses = collector.collect(batch)
    by_number = dict(zip(batch.indices.tolist(), rows, strict=True))
    assert by_number[0].abs().max() == by_number[2].abs().max() == 0
    assert by_number[1].abs().max() > 0
    assert losses.count_nonzero() == 1


def test_a_batch_with_nothing_labelled_is_all_zero():
    (batch,) = iter_batches([Tokens.labelled_from(np.array([5]), 1)], 100)
    rows, losses = RowCollector(as_language_model(tiny.model()), GradientProcessor(4)).collect(batch)
    assert rows.count_nonzero() == losses.count_nonzero() == 0


def test_the_output_head_can_be_tracked_by_name():
    model, docs = tiny.model(), documents()
    head = next(name for name, module in model.named_modules() if module is model.get_output_embeddings())
    collector = RowCollector(as_language_model(model), GradientProcessor(None), [head])
    expected = reference.gradients(model, [head], docs)[head]
    for batch in iter_batches(docs, 60):
        rows, _ = collector.collect(batch)
        torch.testing.assert_close(rows, expected[batch.indices].flatten(1), **EXACT)


def test_a_plain_torch_model_with_an_in_place_activation_is_tracked():
    model = (
        nn.Sequential(nn.Linear(4, 8), nn.ReLU(inplace=True), nn.Linear(8, 2)).double().requires_grad_(False)
    )
    inputs = torch.randn(5, 4, dtype=torch.float64)
    with GradientCollector(model) as collector:
        model(inputs).square().sum().backward()
    model.requires_grad_(True)
    for k in range(5):
        model.zero_grad()
        model(inputs[k : k + 1]).square().sum().backward()
        for name in ("0", "2"):
            torch.testing.assert_close(
                collector.gradients[name][k], model.get_submodule(name).weight.grad, **EXACT
            )


def test_a_module_used_twice_gives_the_sum_over_its_uses():
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.shared = nn.Linear(4, 4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.shared(self.shared(x).tanh())

    model, inputs = Twice().double(), torch.randn(3, 4, dtype=torch.float64)
    with GradientCollector(model) as collector:
        model(inputs).square().sum().backward()
    torch.testing.assert_close(collector.gradients["shared"].sum(0), model.shared.weight.grad, **EXACT)


def test_normalizers_are_not_fitted_from_documents_without_a_labelled_token():
    docs = [Tokens.labelled_from(np.array([5]), 1), Tokens.labelled_from(np.array([5, 6]), 2)]
    with pytest.raises(InvalidInput, match="labelled tokens"):
        fit_normalizers(as_language_model(tiny.model()), select_modules(tiny.model()), iter_batches(docs, 60))


@pytest.mark.parametrize("modules", ["no_such_module", ["gpt_neox.layers.0.nothing"], []])
def test_names_that_select_no_module_are_refused(modules):
    with pytest.raises(InvalidInput, match="track"):
        GradientCollector(tiny.model(), modules=modules)


@pytest.mark.parametrize("dimension", [0, -3])
def test_a_projection_below_one_is_refused(dimension):
    with pytest.raises(InvalidInput, match="projection_dim"):
        GradientProcessor(dimension)


@pytest.mark.parametrize("kind", ["none", "adafactor", "adam", "kfac"])
def test_a_processor_is_the_same_after_saving(tmp_path, kind):
    model, docs = tiny.model(), documents()
    fitted = fit_normalizers(
        as_language_model(model), select_modules(model), iter_batches(docs, 60), kind, include_bias=True
    )
    saved = GradientProcessor(4, fitted, seed=9, include_bias=True)
    saved.save(tmp_path)
    assert {path.suffix for path in tmp_path.iterdir()} == {".json", ".safetensors"}
    (batch,) = iter_batches(docs[:1], 60)
    rows = [
        RowCollector(as_language_model(model), processor).collect(batch)[0]
        for processor in (saved, GradientProcessor.load(tmp_path))
    ]
    assert torch.equal(*rows)
