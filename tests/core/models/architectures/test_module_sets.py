"""`mlp`, `attention` and `down` name the modules that they say, whatever an architecture calls its modules."""

import re
from collections.abc import Iterable

import peft
import pytest
import torch
from peft import LoraConfig
from torch import nn

from bergson_core import GradientCollector
from bergson_core.errors import InvalidInput
from bergson_core.models.language_model import as_language_model
from bergson_core.models.tracking.selection import select_modules
from tests import architectures, tiny

NEITHER = {
    "opt": {"project_in", "project_out"},
    "bert": {"transform.dense"},
    "nemotron_h": {"mixer.in_proj", "mixer.out_proj"},
    "recurrent_gemma": {"temporal_block.linear_x", "temporal_block.linear_y", "temporal_block.linear_out"},
}
"""Ends of the names of modules that are in no MLP and in no attention: of projections of embeddings, of a head, and of
recurrent blocks."""
DOWN = {
    "gpt2": {"mlp.c_proj"},
    "gpt_neo": {"mlp.c_proj"},
    "gpt_neox": {"mlp.dense_4h_to_h"},
    "bloom": {"mlp.dense_4h_to_h"},
    "falcon": {"mlp.dense_4h_to_h"},
    "falcon_new": {"mlp.dense_4h_to_h"},
    "gpt_j": {"mlp.fc_out"},
    "codegen": {"mlp.fc_out"},
    "opt": {"fc2"},
    "opt_post_norm": {"fc2"},
    "xglm": {"fc2"},
    "phi": {"mlp.fc2"},
    "mpt": {"ffn.down_proj"},
    "bert": {"output.dense"},
    "ctrl": {"ffn.2"},
    "cpmant": {"ffn.w_out"},
    "rwkv": {"feed_forward.value"},
    "recurrent_gemma": {"mlp_block.down_proj"},
    "mixtral": {"experts.down_proj"},
    "qwen3_moe": {"experts.down_proj"},
    "olmoe": {"experts.down_proj"},
    "granite_moe": {"experts.down_proj"},
    "gpt_oss": {"experts.down_proj"},
    "nemotron_h": {"experts.down_proj", "shared_experts.down_proj"},
    "qwen2_moe": {"experts.down_proj", "shared_expert.down_proj"},
    "qwen3_next": {"experts.down_proj", "shared_expert.down_proj"},
    "deepseek_v3": {"experts.down_proj", "shared_experts.down_proj", "mlp.down_proj"},
    "llama4": {"shared_expert.down_proj"},
}
"""Ends of the names of the projections back to the residual stream, where these are not `mlp.down_proj`."""
WITHOUT_MLP = "mamba"
ALL = [
    name
    for name in (
        *tiny.ARCHITECTURES,
        *architectures.DENSE,
        *architectures.MIXTURES,
        *architectures.OTHERS,
        *architectures.PARTLY_TRACKED,
    )
    if name != WITHOUT_MLP
]


def make_model(architecture: str) -> nn.Module:
    make = tiny.model if architecture in tiny.ARCHITECTURES else architectures.model
    return make(architecture)


def ends(names: Iterable[str], parts: int) -> set[str]:
    """Returns the last parts of names, without the numbers of experts."""
    return {".".join(re.sub(r"(_proj)\.\d+$", r"\1", name).split(".")[-parts:]) for name in names}


@pytest.mark.parametrize("architecture", ALL)
def test_every_module_of_a_layer_is_in_the_attention_or_in_the_mlp(architecture: str) -> None:
    model = make_model(architecture)
    every, mlp, attention = (set(select_modules(model, name)) for name in ("all", "mlp", "attention"))
    assert mlp and attention
    assert not mlp & attention
    expected = NEITHER.get(architecture, set())
    assert {name for name in every - mlp - attention if not name.endswith(tuple(expected))} == set()
    assert not any("attn" in name or "attention" in name for name in mlp)


@pytest.mark.parametrize("architecture", ALL)
def test_down_are_the_modules_of_mlps_that_lead_back_to_the_residual_stream(architecture: str) -> None:
    model = make_model(architecture)
    down, mlp = select_modules(model, "down"), select_modules(model, "mlp")
    expected = DOWN.get(architecture, {"mlp.down_proj"})
    assert set(down) == {name for name in mlp if ends([name], 2) & expected or ends([name], 1) & expected}
    for end in expected:
        assert any(ends([name], end.count(".") + 1) == {end} for name in down)


@pytest.mark.parametrize("set_name", ["mlp", "attention", "down"])
def test_a_model_without_such_modules_is_an_error_that_names_some_that_it_has(set_name: str) -> None:
    model = as_language_model(architectures.model(WITHOUT_MLP))
    with pytest.raises(InvalidInput, match=rf"'{set_name}'.*mixer\.in_proj.*regular expression"):
        model.select_modules(set_name)


@pytest.mark.parametrize(
    ("architecture", "targets", "in_mlp", "leading_back"),
    [
        ("gpt2", ["c_attn", "c_proj", "c_fc"], {"mlp.c_fc", "mlp.c_proj"}, {"mlp.c_proj"}),
        ("llama", ["q_proj", "up_proj", "down_proj"], {"mlp.up_proj", "mlp.down_proj"}, {"mlp.down_proj"}),
        ("opt", ["q_proj", "fc1", "fc2"], {"fc1", "fc2"}, {"fc2"}),
        ("falcon", ["query_key_value", "dense_4h_to_h"], {"mlp.dense_4h_to_h"}, {"mlp.dense_4h_to_h"}),
    ],
)
def test_adapters_are_in_the_sets_of_their_modules_and_alone(
    architecture: str, targets: list[str], in_mlp: set[str], leading_back: set[str]
) -> None:
    config = LoraConfig(r=2, target_modules=targets, fan_in_fan_out=architecture == "gpt2")
    model = peft.get_peft_model(make_model(architecture), config)
    every, mlp, attention, down = (
        set(select_modules(model, name)) for name in ("all", "mlp", "attention", "down")
    )
    assert all(".lora_A." in name or ".lora_B." in name for name in every)
    assert mlp | attention == every
    assert {name.rpartition(".lora_")[0].endswith(tuple(in_mlp)) for name in mlp} == {True}
    assert len(mlp) == 2 * 2 * len(in_mlp)  # A and B in two layers
    assert {name.rpartition(".lora_")[0].endswith(tuple(leading_back)) for name in down} == {True}
    assert len(down) == 2 * 2 * len(leading_back)


def test_a_copy_of_an_mlp_that_was_trained_beside_adapters_is_an_mlp() -> None:
    config = LoraConfig(r=2, target_modules=["q_proj"], modules_to_save=["mlp"])
    model = peft.get_peft_model(make_model("llama"), config)
    assert ends(select_modules(model, "mlp"), 3) == {
        f"modules_to_save.default.{x}_proj" for x in ("gate", "up", "down")
    }
    assert ends(select_modules(model, "down"), 1) == {"down_proj"}


def test_adapters_of_attention_alone_have_no_mlp() -> None:
    model = peft.get_peft_model(make_model("llama"), LoraConfig(r=2, target_modules=["q_proj"]))
    with pytest.raises(InvalidInput, match=r"'mlp'.*q_proj\.lora_A"):
        select_modules(model, "mlp")


@pytest.mark.parametrize("architecture", ["mistral", "opt", "mixtral"])
def test_an_mlp_as_wide_as_the_residual_stream_ends_with_the_projection_back(architecture: str) -> None:
    width = "ffn_dim" if architecture == "opt" else "intermediate_size"
    model = architectures.model(architecture, **{width: 24})
    assert ends(select_modules(model, "down"), 1) == {"fc2" if architecture == "opt" else "down_proj"}


@pytest.mark.parametrize("expression", ["(mlp)", r"\.mlp\.", "mlp.", "ml", "MLP|mlp"])
def test_any_other_text_is_a_regular_expression_as_before(expression: str) -> None:
    model = peft.get_peft_model(make_model("llama"), LoraConfig(r=2, target_modules=["down_proj"]))
    selected = select_modules(model, expression)
    assert any(
        name.endswith("base_layer") for name in selected
    )  # an expression is searched for in every name
    assert all("mlp" in name for name in selected)


def test_all_are_the_modules_that_are_tracked_by_default() -> None:
    assert set(select_modules(make_model("llama"), "all")) == set(select_modules(make_model("llama")))


class Layer(nn.Module):
    """A layer that is not from transformers, with names of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.attn = nn.ModuleDict({"qkv": nn.Linear(6, 18), "out": nn.Linear(6, 6)})
        self.ff = nn.Sequential(nn.Linear(6, 24), nn.GELU(), nn.Linear(24, 6))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.attn["out"](self.attn["qkv"](x)[..., :6])
        return x + self.ff(x)


def test_the_sets_are_found_in_models_of_ones_own() -> None:
    model = nn.Sequential(Layer(), Layer())
    with GradientCollector(model, modules="down") as collector:
        model(torch.randn(2, 3, 6)).sum().backward()
    assert list(collector.gradients) == ["0.ff.2", "1.ff.2"]
    assert list(select_modules(model, "attention")) == [
        "0.attn.out",
        "0.attn.qkv",
        "1.attn.out",
        "1.attn.qkv",
    ]


def test_a_layer_of_torch_has_its_mlp_beside_the_attention() -> None:
    layers = nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 16), 2, enable_nested_tensor=False)
    assert list(select_modules(layers, "mlp")) == [f"layers.{k}.linear{n}" for k in range(2) for n in (1, 2)]
    assert list(select_modules(layers, "down")) == ["layers.0.linear2", "layers.1.linear2"]


def test_a_compiled_model_has_the_same_sets() -> None:
    model = make_model("gpt_neox")
    model.gpt_neox.layers[0] = torch.compile(model.gpt_neox.layers[0])
    assert list(select_modules(model, "mlp")) == list(select_modules(make_model("gpt_neox"), "mlp"))
