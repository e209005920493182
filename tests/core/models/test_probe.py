"""Modules that no forward pass reaches are not tracked and do not count; those that are reached sometimes are kept."""

import pytest
import torch
from datasets import Dataset
from torch import nn
from transformers import MambaConfig, MambaForCausalLM

from bergson_core import (
    AttributionIndex,
    BuildSpec,
    GradientProcessor,
    build_index,
    collect_gradients,
    fit_processor,
)
from bergson_core.errors import InvalidInput
from bergson_core.models.language_model import as_language_model
from bergson_core.models.modules import coverage_percent
from tests import architectures, tiny


def mamba() -> MambaForCausalLM:
    torch.manual_seed(0)
    config = MambaConfig(vocab_size=tiny.VOCABULARY, hidden_size=24, num_hidden_layers=2, state_size=4)
    return MambaForCausalLM(config).eval()


class Routed(nn.Module):
    """Experts that are modules of a list, of which each token is given to one."""

    def __init__(self, experts: int) -> None:
        super().__init__()
        self.experts = nn.ModuleList(nn.Linear(24, 24, bias=False) for _ in range(experts))

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        out, rows = torch.zeros_like(hidden), hidden.flatten(0, -2)
        chosen = rows.abs().argmax(-1) % len(self.experts)
        for number in chosen.unique().tolist():
            out.view(rows.shape)[chosen == number] = self.experts[number](rows[chosen == number])
        return out


def with_layer(**modules: nn.Module) -> nn.Module:
    """Returns a model whose first layer has these modules, of which the forward pass reaches only `mlp`."""
    model = tiny.model("llama", dtype=torch.float32)
    for name, module in modules.items():
        setattr(model.model.layers[0], name, module)
    return model


def reached_names(model: nn.Module) -> set[str]:
    return set(as_language_model(model).select_modules())


def test_a_weight_that_the_model_uses_without_calling_its_module_is_not_tracked():
    model = mamba()
    language_model = as_language_model(model)
    modules = language_model.select_modules()
    assert language_model.unreached == {f"backbone.layers.{k}.mixer.dt_proj" for k in range(2)}
    assert {name.split(".")[-1] for name in modules} == {"in_proj", "x_proj", "out_proj"}
    total = sum(parameter.numel() for parameter in model.parameters())
    tracked = sum(module.module.weight.numel() for module in modules.values())
    assert coverage_percent(model, modules.values()) == pytest.approx(100 * tracked / total)


def test_heads_that_only_training_uses_are_not_tracked():
    model = with_layer(value_head=nn.Linear(24, 1), mtp=nn.ModuleList([nn.Linear(24, 24), nn.Linear(24, 24)]))
    names = reached_names(model)
    assert names == reached_names(tiny.model("llama"))


def test_of_several_heads_in_a_list_the_ones_that_are_used_are_tracked():
    class FirstOnly(nn.ModuleList):
        def forward(self, hidden: torch.Tensor) -> torch.Tensor:
            return self[0](hidden)

    names = reached_names(with_layer(mlp=FirstOnly([nn.Linear(24, 24), nn.Linear(24, 24)])))
    assert "model.layers.0.mlp.0" in names
    assert "model.layers.0.mlp.1" not in names


def test_experts_that_the_probe_does_not_reach_are_kept():
    names = reached_names(with_layer(mlp=Routed(64)))
    assert {f"model.layers.0.mlp.experts.{k}" for k in range(64)} <= names


def test_fused_experts_are_kept():
    model = architectures.model("mixtral", num_experts_per_tok=1)
    assert as_language_model(model).unreached == frozenset()


def test_modules_that_are_named_and_never_reached_are_an_error():
    language_model = as_language_model(mamba())
    for modules in ("dt_proj", ["backbone.layers.0.mixer.dt_proj"], r"layers\.1\.mixer\.dt"):
        with pytest.raises(InvalidInput, match=r"dt_proj'.* never calls it"):
            language_model.select_modules(modules)
    assert len(language_model.select_modules("dt_proj|out_proj")) == 2


def test_gradients_are_collected_of_the_modules_that_are_reached():
    model, tokenizer = mamba(), tiny.tokenizer(tiny.texts(20))
    dataset = Dataset.from_dict({"text": tiny.texts(4)})
    processor = fit_processor(model, dataset, tokenizer)
    assert not any("dt_proj" in name for name in processor.normalizers)
    rows = torch.tensor(collect_gradients(model, dataset, tokenizer, GradientProcessor(4))["gradients"])
    assert rows.shape == (4, 6 * 16)
    assert rows.view(4, 6, 16).abs().sum((0, 2)).min() > 0
    with pytest.raises(InvalidInput, match="never calls it"):
        collect_gradients(model, dataset, tokenizer, GradientProcessor(4), modules="dt_proj")


def test_an_index_has_no_rows_of_modules_that_are_never_reached(tmp_path):
    mamba().save_pretrained(tmp_path / "model")
    tiny.tokenizer(tiny.texts(20)).save_pretrained(tmp_path / "model")
    documents = tiny.save_documents(tmp_path / "documents.jsonl")
    fields = {"model": str(tmp_path / "model"), "dataset": {"path": str(documents)}, "columns": {"id": "id"}}
    spec = BuildSpec.model_validate(fields | {"gradients": {"projection_dim": 4}})
    manifest = build_index(spec, tmp_path / "facts")
    assert len(manifest.modules) == 6
    assert AttributionIndex.open(tmp_path / "facts").query("Person 3 lives in", " city 3.").results
    with pytest.raises(InvalidInput, match="never calls it"):
        build_index(
            spec.model_copy(update={"gradients": spec.gradients.model_copy(update={"modules": "dt_proj"})}),
            tmp_path / "nothing",
        )
    assert not (tmp_path / "nothing").exists()
