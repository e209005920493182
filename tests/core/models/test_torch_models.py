"""Gradients are those of a plain loop of autograd in float64, for models that are not from transformers."""

import gc

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from bergson_core import GradientCollector, GradientProcessor
from bergson_core.errors import InvalidInput
from bergson_core.models.modules import coverage_percent
from bergson_core.models.tracking.selection import select_modules

EXACT = {"rtol": 1e-8, "atol": 1e-10}


def assert_equals_plain_autograd(model: nn.Module, inputs: torch.Tensor, **settings: object) -> None:
    """Compares each sample's raw gradients in a batch, the model frozen, with autograd on the sample alone."""
    model.double().requires_grad_(False)
    with GradientCollector(model, **settings) as collector:
        model(inputs).square().sum().backward()
    model.requires_grad_(True)
    assert collector.gradients.keys() == collector.modules.keys()
    for k in range(len(inputs)):
        model.zero_grad()
        model(inputs[k : k + 1]).square().sum().backward()
        for name, gradient in collector.gradients.items():
            torch.testing.assert_close(gradient[k], model.get_submodule(name).weight.grad, **EXACT)


class Checkpointed(nn.Module):
    """Two blocks on [n, s, 4], each run by torch's checkpoint."""

    def __init__(self, reentrant: bool) -> None:
        super().__init__()
        self.first, self.second = (
            nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 4)) for _ in range(2)
        )
        self.reentrant = reentrant

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for block in (self.first, self.second):
            x = checkpoint(block, x, use_reentrant=self.reentrant)
        return x


def test_a_frozen_model_that_checkpoints_its_blocks_is_exact():
    assert_equals_plain_autograd(Checkpointed(reentrant=False), torch.randn(3, 5, 4, dtype=torch.float64))


@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")
def test_reentrant_checkpoints_of_a_frozen_model_are_refused():
    model = Checkpointed(reentrant=True).requires_grad_(False)
    with pytest.raises(InvalidInput, match="use_reentrant=False"), GradientCollector(model):
        model(torch.randn(3, 5, 4))
    with torch.no_grad(), GradientCollector(model):
        model(torch.randn(3, 5, 4))  # a pass without gradients is no error


class Plain(nn.Module):
    """Linear modules on [n, s, f], on the flattened positions, on a grid of four dimensions and on a pooled mean."""

    def __init__(self) -> None:
        super().__init__()
        self.positions, self.flat, self.grid, self.pooled = (nn.Linear(4, 4) for _ in range(4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        n, s, f = x.shape
        x = self.positions(x).tanh()
        x = self.flat(x.reshape(n * s, f)).tanh().view(n, s, f)
        x = self.grid(x.view(n, 2, s // 2, f)).tanh().view(n, s, f)
        return self.pooled(x.mean(1))


def test_a_plain_model_is_exact_for_every_shape_of_features():
    assert_equals_plain_autograd(Plain(), torch.randn(3, 6, 4, dtype=torch.float64))


class Routed(nn.Module):
    """Experts that are Linear modules, each of which sees the positions it is chosen for."""

    def __init__(self) -> None:
        super().__init__()
        self.experts = nn.ModuleList(nn.Linear(4, 4) for _ in range(2))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        flat = x.reshape(-1, 4)
        out = torch.zeros_like(flat)
        for k, expert in enumerate(self.experts):
            chosen = (flat[:, 0] > 0) == bool(k)
            out[chosen] = expert(flat[chosen])
        return out.view_as(x)


def test_a_module_that_sees_some_positions_of_several_samples_is_refused():
    inputs = torch.randn(4, 6, 4, dtype=torch.float64)
    inputs[..., 0] = torch.tensor([1.0, -1.0, -1.0, 1.0, 1.0, 1.0])  # 16 and 8 rows: multiples of the samples
    with pytest.raises(InvalidInput, match=r"experts\.0.*`modules`"):
        assert_equals_plain_autograd(Routed(), inputs)
    assert_equals_plain_autograd(Routed(), inputs[:1])


def test_linear_modules_that_share_a_weight_are_one_tracked_module():
    model = nn.Sequential(nn.Linear(4, 4, bias=False), nn.Tanh(), nn.Linear(4, 4, bias=False))
    model[2].weight = model[0].weight
    assert list(select_modules(model)) == ["0"]
    assert coverage_percent(model, select_modules(model).values()) == 100
    assert_equals_plain_autograd(model, torch.randn(3, 5, 4, dtype=torch.float64))


def test_the_projection_that_torchs_attention_never_calls_is_not_tracked():
    model = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, dropout=0.0)
    assert list(select_modules(model)) == ["linear1", "linear2"]
    assert coverage_percent(model, select_modules(model).values()) < 50
    assert_equals_plain_autograd(model, torch.randn(3, 5, 8, dtype=torch.float64))


class ChangesItsInput(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.below, self.above = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.below(x).tanh().clone()
        x += self.above(x)
        return x


def test_activations_changed_in_place_are_refused_where_they_are_needed_again():
    model = ChangesItsInput().requires_grad_(False)
    with pytest.raises(InvalidInput, match="in place"), GradientCollector(model):
        model(torch.randn(3, 4)).sum().backward()
    with GradientCollector(model, GradientProcessor(2)) as collector:
        model(torch.randn(3, 4)).sum().backward()
    assert collector.gradients.keys() == {"below", "above"}


class Softmaxed(nn.Linear):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x).softmax(-1)


class Transposed(nn.Linear):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x @ self.weight.T + self.bias


def test_a_linear_subclass_is_tracked_only_where_it_is_linear():
    model = nn.Sequential(Transposed(4, 5), Softmaxed(5, 4))
    assert list(select_modules(model)) == ["0"]
    assert_equals_plain_autograd(model, torch.randn(3, 5, 4, dtype=torch.float64))


def test_activations_do_not_outlive_the_forward_pass_once_they_are_projected():
    addresses = []

    def is_alive(address: int) -> bool:
        return any(type(value) is torch.Tensor and value.data_ptr() == address for value in gc.get_objects())

    class Doubled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.below, self.above = nn.Linear(4, 4), nn.Linear(4, 4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            doubled = self.below(x) * 2
            addresses.append(doubled.data_ptr())
            return self.above(doubled)

    model = Doubled().requires_grad_(False)
    for processor, lives in ((GradientProcessor(2), False), (GradientProcessor(), True)):
        with GradientCollector(model, processor):
            output = model(torch.randn(3, 4))
            assert is_alive(addresses[-1]) == lives
            output.sum().backward()
