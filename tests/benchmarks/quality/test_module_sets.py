"""The sets of modules hold the modules that they are named after, in each architecture."""

import pytest

from benchmarks.quality.module_sets import MODULE_SETS, select_module_sets
from bergson_core.errors import InvalidInput
from bergson_core.models.modules import select_modules
from tests import tiny

DOWN_PROJECTIONS = {
    "gpt2": "transformer.h.{}.mlp.c_proj",
    "gpt_neox": "gpt_neox.layers.{}.mlp.dense_4h_to_h",
    "llama": "model.layers.{}.mlp.down_proj",
}


@pytest.mark.parametrize("architecture", MODULE_SETS)
def test_every_module_is_in_the_attention_or_in_the_mlp(architecture: str) -> None:
    model = tiny.model(architecture)
    names = tuple(select_modules(model))
    sets = select_module_sets(model.config.model_type, names)
    assert sets["all"] == names
    assert not set(sets["attention"]) & set(sets["mlp"])
    assert {*sets["attention"], *sets["mlp"]} == set(names)
    assert sets["down"] == tuple(DOWN_PROJECTIONS[architecture].format(block) for block in range(2))


@pytest.mark.parametrize("architecture", MODULE_SETS)
def test_an_index_can_be_built_with_a_set(architecture: str) -> None:
    model = tiny.model(architecture)
    sets = select_module_sets(architecture, select_modules(model))
    for set_name, expression in MODULE_SETS[architecture].items():
        assert tuple(select_modules(model, expression)) == sets[set_name]


def test_the_adapters_of_modules_are_in_the_sets_of_the_modules() -> None:
    prefix = "base_model.model.model.layers.0"
    names = [f"{prefix}.{part}.lora_A.default" for part in ("self_attn.q_proj", "mlp.down_proj")]
    sets = select_module_sets("llama", names)
    assert sets == {"all": (*names,), "attention": (names[0],), "mlp": (names[1],), "down": (names[1],)}


def test_an_architecture_without_sets_is_an_error() -> None:
    with pytest.raises(InvalidInput, match=r"'bloom'.*gpt2"):
        select_module_sets("bloom", ["transformer.h.0.mlp"])
    with pytest.raises(InvalidInput, match="no module of gpt2"):
        select_module_sets("gpt2", ["transformer.h.0.attn.c_attn"])
