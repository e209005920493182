"""Gradients of a model that torch.compile has compiled are those of the model as it was written."""

import copy
from collections.abc import Callable

import pytest
import torch
from datasets import Dataset
from torch import nn

from bergson_core import GradientCollector, GradientProcessor, collect_gradients
from bergson_core.models import hooks
from bergson_core.models.language_model import as_language_model
from tests import tiny

IDS = torch.randint(1, tiny.VOCABULARY, (3, 9), generator=torch.Generator().manual_seed(0))


def compile_layers(model: nn.Module, backend: str) -> nn.Module:
    for number, layer in enumerate(model.model.layers):
        model.model.layers[number] = torch.compile(layer, backend=backend)
    return model


def compile_in_place(model: nn.Module, backend: str) -> nn.Module:
    model.compile(backend=backend)
    return model


def compile_forward(model: nn.Module, backend: str) -> nn.Module:
    model.forward = torch.compile(model.forward, backend=backend)
    return model


COMPILERS: dict[str, Callable[..., nn.Module]] = {
    "wrapped": lambda model, backend: torch.compile(model, backend=backend),
    "in place": compile_in_place,
    "layers": compile_layers,
    "forward": compile_forward,
}


@pytest.fixture(autouse=True)
def fresh_compiler():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def loss(model: nn.Module) -> torch.Tensor:
    return model(input_ids=IDS, labels=IDS).loss


def gradients(
    model: nn.Module, compute_loss: Callable[[nn.Module], torch.Tensor] = loss
) -> dict[str, torch.Tensor]:
    with GradientCollector(model, GradientProcessor(4)) as collector:
        compute_loss(model).backward()
    return collector.gradients


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("compiler", "backend"), [*((name, "eager") for name in COMPILERS), ("wrapped", "aot_eager")]
)
def test_a_compiled_model_gives_the_gradients_of_the_model_as_it_was_written(compiler, backend):
    plain, tokenizer = tiny.model("llama"), tiny.tokenizer(tiny.texts(20))
    expected, dataset = gradients(plain), Dataset.from_dict({"text": tiny.texts(4)})
    rows = collect_gradients(plain, dataset, tokenizer, GradientProcessor(4))["gradients"]
    model = COMPILERS[compiler](copy.deepcopy(plain), backend)
    loss(model).backward()  # compiles the model, without hooks
    collected = gradients(model)
    assert list(collected) == list(expected)
    for name, gradient in collected.items():
        torch.testing.assert_close(gradient, expected[name])
    compiled_rows = collect_gradients(model, dataset, tokenizer, GradientProcessor(4))["gradients"]
    torch.testing.assert_close(torch.tensor(compiled_rows), torch.tensor(rows))
    assert as_language_model(model).backbone is not None


@pytest.mark.filterwarnings("ignore")
def test_a_compiled_function_that_runs_the_model_is_run_as_it_was_written():
    model = tiny.model("llama")
    expected, compute_loss = gradients(model), torch.compile(loss, backend="eager")
    compute_loss(model).backward()
    assert gradients(model, compute_loss).keys() == expected.keys()


@pytest.mark.filterwarnings("ignore")
def test_compiled_code_runs_again_when_the_last_collector_closes(monkeypatch):
    # A training run of another test that was broken off may have left a collector open.
    monkeypatch.setattr(hooks, "run_uncompiled", type(hooks.run_uncompiled)())
    torch.compiler.set_stance("default")
    calls = []

    def backend(graph: torch.fx.GraphModule, _inputs: list) -> Callable:
        calls.append(graph)
        return graph.forward

    double = torch.compile(lambda x: 2 * x, backend=backend)
    first, second = (GradientCollector(tiny.model()) for _ in range(2))
    first.__enter__()
    second.__enter__()
    first.__exit__()
    double(torch.ones(1))
    assert not calls
    second.__exit__()
    double(torch.ones(1))
    assert calls
