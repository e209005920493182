"""A model whose parts lie on the CPU and on the disk has the rows that it has in one piece, and stays out of memory."""

import gc
import json
import weakref
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from accelerate.utils import OffloadedWeightsLoader
from torch import nn
from transformers import MixtralConfig, MixtralForCausalLM

from bergson_core import AttributionIndex, BuildSpec, build_index
from bergson_core.attribution.unlearning import Unlearner
from bergson_core.errors import InvalidInput
from bergson_core.gradients.processor import GradientProcessor
from bergson_core.gradients.row_collector import RowCollector
from bergson_core.integrations.ray_shard_actor import ShardBuilderSpec
from bergson_core.models import offloading
from bergson_core.models.loading import load_model
from bergson_core.models.offloading import DEVICE_MAP_VARIABLE, reload_in_backward
from bergson_core.tokens.batching import iter_batches
from bergson_core.tokens.tokenization import Tokens
from tests import tiny
from tests.core.helpers import query


def split(model: nn.Module) -> dict[str, str]:
    """Returns a device map that has every other part of a model on the disk, and its head where its embedding is."""
    backbone = model.base_model_prefix
    parts = []
    for name, child in getattr(model, backbone).named_children():
        parts += (
            [f"{name}.{number}" for number in range(len(child))]
            if isinstance(child, nn.ModuleList)
            else [name]
        )
    places = {f"{backbone}.{name}": ("cpu", "disk")[number % 2] for number, name in enumerate(parts)}
    head = next(name for name, child in model.named_children() if isinstance(child, nn.Linear))
    return places | {head: "cpu"}


def save(directory: Path, model: nn.Module) -> str:
    model.float().save_pretrained(directory)
    tiny.tokenizer(tiny.texts(20)).save_pretrained(directory)
    return str(directory)


def documents() -> list[Tokens]:
    rng = np.random.default_rng(0)
    return [Tokens.labelled_from(rng.integers(1, tiny.VOCABULARY, size=s), 3) for s in (9, 14, 10)]


@pytest.mark.parametrize(
    "modules", [None, "embed|wte|lm_head|proj|dense|c_"], ids=["default modules", "embeddings and head too"]
)
@pytest.mark.parametrize("architecture", tiny.ARCHITECTURES)
def test_rows_and_losses_are_those_of_the_model_in_one_piece(tmp_path, architecture, modules):
    path = save(tmp_path / "model", tiny.model(architecture))
    collected = []
    for device_map in (None, split(tiny.model(architecture))):
        model = load_model(path, device_map=device_map)
        assert any(weight.is_meta for weight in model.model.parameters()) == (device_map is not None)
        collector = RowCollector(model, GradientProcessor(4), modules)
        batches = iter_batches(documents(), 100, collector.device)
        collected.append([collector.collect(batch) for batch in batches])
    for whole, parts in zip(*collected, strict=True):
        for expected, actual in zip(whole, parts, strict=True):
            assert torch.equal(actual, expected)
            assert expected.any()


def test_an_index_is_built_and_asked_with_the_map_of_the_environment(
    tmp_path, sources, spec: BuildSpec, monkeypatch
):
    build_index(spec, tmp_path / "whole")
    (whole,) = AttributionIndex.open(tmp_path / "whole").attribute([query(top_k=40)])
    monkeypatch.setenv(DEVICE_MAP_VARIABLE, json.dumps(split(tiny.model())))
    build_index(spec, tmp_path / "parts")
    opened = AttributionIndex.open(tmp_path / "parts")
    assert any(weight.is_meta for weight in opened.model.model.parameters())
    (parts,) = opened.attribute([query(top_k=40)])
    assert parts.results == whole.results
    rows = "shards/00000/gradients.bin"
    assert (tmp_path / "parts" / rows).read_bytes() == (tmp_path / "whole" / rows).read_bytes()


@pytest.mark.parametrize("reload", [True, False])
def test_autograd_keeps_no_weight_that_is_on_the_disk(tmp_path, monkeypatch, reload):
    path = save(tmp_path / "model", tiny.model())
    model = load_model(path, device_map=split(tiny.model())).model
    storages: list[weakref.ref] = []
    read = OffloadedWeightsLoader.__getitem__

    def read_and_note(loader: OffloadedWeightsLoader, name: str) -> torch.Tensor:
        weight = read(loader, name)
        storages.append(weakref.ref(weight.untyped_storage()))
        return weight

    def count_alive() -> int:
        gc.collect()
        return sum(storage() is not None for storage in storages)

    monkeypatch.setattr(OffloadedWeightsLoader, "__getitem__", read_and_note)
    model.get_input_embeddings().register_forward_hook(lambda _module, _args, output: output.requires_grad_())
    with reload_in_backward(model) if reload else nullcontext():
        logits = model(input_ids=torch.arange(1, 9)[None]).logits
        assert storages
        assert (count_alive() == 0) == reload
        loaded = len(storages)
        logits.sum().backward()
    assert (len(storages) > loaded) == reload
    assert count_alive() == 0


def test_unlearning_needs_the_weights_in_memory(tmp_path):
    model = load_model(save(tmp_path / "model", tiny.model()), device_map=split(tiny.model()))
    with pytest.raises(InvalidInput, match="unlearning a document needs all weights in memory"):
        Unlearner.fit(model, documents())


def test_fused_experts_on_the_disk_are_refused_by_name(tmp_path):
    sizes = {"hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1, "num_local_experts": 4}
    network = MixtralForCausalLM(MixtralConfig(vocab_size=tiny.VOCABULARY, **sizes, **heads))
    model = load_model(save(tmp_path / "model", network), device_map=split(network))
    collector = RowCollector(model, GradientProcessor(4))
    (batch,) = iter_batches(documents(), 100)
    with pytest.raises(InvalidInput, match=r"tracking the fused experts of 'model\.layers\.\d.*in memory"):
        collector.collect(batch)


def test_rays_actors_have_one_device_each():
    builder: Any = SimpleNamespace(model=SimpleNamespace(has_device_map=True))
    with pytest.raises(InvalidInput, match="device_map: each of Ray's actors has one device"):
        ShardBuilderSpec.of(builder)


@pytest.mark.parametrize("value", ["fast", "{}", "[0]", '{"model": 1.5}', "{", "0"])
def test_a_map_that_is_none_is_an_error_that_says_what_is_one(tmp_path, value, monkeypatch):
    monkeypatch.setenv(DEVICE_MAP_VARIABLE, value)
    with pytest.raises(InvalidInput, match=f"{DEVICE_MAP_VARIABLE}: "):
        load_model(str(tiny.save_model(tmp_path / "model")))


def test_the_package_that_is_needed_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(offloading, "find_spec", lambda _: None)
    with pytest.raises(InvalidInput, match=r"device_map: .*pip install 'bergson-service\[large\]'"):
        load_model(str(tiny.save_model(tmp_path / "model")), device_map="auto")


def test_a_build_may_name_its_map_and_the_index_is_opened_with_it(tmp_path, spec: BuildSpec, monkeypatch):
    device_map = split(tiny.model())
    named = BuildSpec.model_validate(spec.model_dump() | {"device_map": device_map})
    assert named.fingerprint() == spec.fingerprint()
    build_index(named, tmp_path / "parts")
    model = AttributionIndex.open(tmp_path / "parts").model.model
    assert any(weight.is_meta for weight in model.parameters())
    whole = dict.fromkeys(device_map, "cpu")
    monkeypatch.setenv(DEVICE_MAP_VARIABLE, json.dumps(whole))
    model = AttributionIndex.open(tmp_path / "parts").model.model
    assert not any(weight.is_meta for weight in model.parameters())


@pytest.mark.parametrize(
    "value", ["fast", {}, [0], {"model": 1.5}, {"model": True}, {"model": "gpu"}, {"model": -1}]
)
def test_a_build_with_another_map_is_refused(spec: BuildSpec, value):
    with pytest.raises(InvalidInput, match=r"^device_map(\.model)?: expected"):
        BuildSpec.model_validate(spec.model_dump() | {"device_map": value})


def test_either_a_device_or_a_map(tmp_path):
    with pytest.raises(InvalidInput, match="expected device or device_map, got both"):
        load_model(str(tmp_path), device="cpu", device_map="auto")


def test_a_device_goes_before_the_map_of_the_environment(tmp_path, monkeypatch):
    monkeypatch.setenv(DEVICE_MAP_VARIABLE, json.dumps(split(tiny.model())))
    model = load_model(str(tiny.save_model(tmp_path / "model")), device="cpu")
    assert not any(weight.is_meta for weight in model.model.parameters())
