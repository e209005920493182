"""PEFT models: the adapters are what was trained, so they are what is tracked."""

import numpy as np
import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import nn

from bergson_core import GradientProcessor
from bergson_core.batching import Tokens, batches
from bergson_core.collect import RowCollector
from bergson_core.layers import coverage_percent, select
from bergson_core.models import wrap
from tests import reference, tiny

EXACT = {"rtol": 1e-8, "atol": 1e-10}
TARGETS = {"llama": ["q_proj", "down_proj"], "gpt2": ["c_attn", "c_proj"]}


def documents() -> list[Tokens]:
    rng = np.random.default_rng(0)
    return [Tokens.labelled_from(rng.integers(1, tiny.VOCABULARY, size=s), 3) for s in (9, 14, 10)]


def lora(architecture: str, **settings: object) -> PeftModel:
    """A model with LoRA of rank 3 whose weights are not at their defaults, which would hide errors."""
    torch.manual_seed(0)
    config = LoraConfig(
        r=3,
        lora_alpha=5,
        target_modules=TARGETS[architecture],
        fan_in_fan_out=architecture == "gpt2",
        **settings,
    )
    model = get_peft_model(tiny.model(architecture), config)
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            nn.init.normal_(parameter, std=0.3)
    return model.double()


@pytest.mark.parametrize("architecture", TARGETS)
def test_only_the_adapters_are_tracked_and_they_are_exact(architecture):
    model, docs = lora(architecture, lora_dropout=0.5).train(), documents()
    layers = select(model)
    assert {name.split(".")[-2] for name in layers} == {"lora_A", "lora_B"}
    assert coverage_percent(model, layers.values()) == pytest.approx(100)
    collector = RowCollector(wrap(model), GradientProcessor(None))
    found = [(batch.numbers, collector.collect(batch)[0]) for batch in batches(docs, 30)]
    expected = reference.gradients(model.eval(), list(layers), docs)
    for numbers, rows in found:
        for name, part in collector.slices.items():
            torch.testing.assert_close(rows[:, part], expected[name][numbers].flatten(1), **EXACT)


def test_the_head_of_a_wrapped_model_is_run_on_labelled_tokens_only():
    model = wrap(lora("llama"))
    assert model.head is not None
    assert model.backbone is model.model.get_base_model().model


def test_of_several_adapters_the_active_one_is_tracked():
    model = lora("llama")
    model.add_adapter("other", LoraConfig(r=2, target_modules=["q_proj"]))
    assert all(name.endswith(".default") for name in select(model))
    model.set_adapter("other")
    assert all(name.endswith(("q_proj.lora_A.other", "q_proj.lora_B.other")) for name in select(model))
    assert coverage_percent(model, select(model).values()) == pytest.approx(100)


def test_a_module_that_is_trained_beside_the_adapters_counts_in_the_coverage():
    model = lora("llama", modules_to_save=["lm_head"])
    names = list(select(model))
    assert any("lm_head" in name for name in names)
    assert coverage_percent(model, select(model).values()) == pytest.approx(100)


def test_layers_below_the_adapters_can_be_named():
    model = lora("llama")
    assert list(select(model, r"layers\.0\.mlp\.up_proj$")) == ["base_model.model.model.layers.0.mlp.up_proj"]
