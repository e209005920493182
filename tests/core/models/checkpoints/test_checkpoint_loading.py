"""Checkpoints are loaded one at a time, compared, and exchanged in one model."""

import gc
import json
import weakref
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import AutoModelForCausalLM

from bergson_core.errors import InvalidInput, ModelNotFound
from bergson_core.models import loading
from bergson_core.models.checkpoints.loading import checkpoint_sources
from bergson_core.models.loading import load_model
from tests import tiny


@pytest.fixture
def run(tmp_path: Path) -> list[str]:
    return [str(tiny.save_model(tmp_path / f"step-{seed}", seed)) for seed in (1, 2, 3)]


def load(names: list[str]):
    return load_model(names[-1], checkpoints=checkpoint_sources(names))


def weights_of(directory: str) -> dict[str, torch.Tensor]:
    return dict(AutoModelForCausalLM.from_pretrained(directory).named_parameters())


def has_weights(model: nn.Module, directory: str) -> bool:
    expected = weights_of(directory)
    own = dict(model.named_parameters())
    return own.keys() == expected.keys() and all(torch.equal(own[name], w) for name, w in expected.items())


def test_each_checkpoint_has_its_turn_and_the_last_one_stays(run: list[str]) -> None:
    model = load(run)
    assert model.checkpoints is not None and len(model.checkpoints) == 3
    assert has_weights(model.model, run[2])
    for number, directory in enumerate(run):
        with model.checkpoints.use(number):
            assert has_weights(model.model, directory)
        assert has_weights(model.model, run[2])
    with pytest.raises(ZeroDivisionError), model.checkpoints.use(0):
        raise ZeroDivisionError
    assert has_weights(model.model, run[2])


def test_one_checkpoint_is_in_memory_at_a_time(run: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    loaded: list[weakref.ref] = []
    load_one = loading._load

    def load_and_count(*args):
        gc.collect()
        assert [ref for ref in loaded if ref() is not None] == []
        model, tokenizer = load_one(*args)
        loaded.append(weakref.ref(model))
        return model, tokenizer

    monkeypatch.setattr(loading, "_load", load_and_count)
    load(run)
    assert len(loaded) == 3


def test_weights_that_all_checkpoints_share_are_stored_once(tmp_path: Path) -> None:
    base = tiny.save_model(tmp_path / "base")
    names = []
    for step in (1, 2):
        torch.manual_seed(step)
        adapted = get_peft_model(
            AutoModelForCausalLM.from_pretrained(base), LoraConfig(r=2, target_modules=["dense"])
        )
        for name, parameter in adapted.named_parameters():
            if "lora_" in name:
                nn.init.normal_(parameter, std=0.3)
        adapted.save_pretrained(tmp_path / f"step-{step}")
        names.append(str(tmp_path / f"step-{step}"))
    checkpoints = load(names).checkpoints
    assert checkpoints is not None
    first, second = checkpoints._weights
    different = {name for name in first if first[name] is not second[name]}
    assert different and all("lora_" in name for name in different)


def wider(directory: Path) -> None:
    torch.manual_seed(0)
    model = tiny.gpt_neox(tiny.VOCABULARY + 8)
    model.save_pretrained(directory)
    tiny.tokenizer(tiny.texts(20)).save_pretrained(directory)


def other_architecture(directory: Path) -> None:
    tiny.model("llama", dtype=torch.float32).save_pretrained(directory)
    tiny.tokenizer(tiny.texts(20)).save_pretrained(directory)


def other_vocabulary(directory: Path) -> None:
    tiny.save_model(directory)
    tiny.tokenizer(["quite different words that make other merges"]).save_pretrained(directory)


def other_splitting(directory: Path) -> None:
    tiny.save_model(directory)
    path = directory / "tokenizer.json"
    content = json.loads(path.read_text())
    content["pre_tokenizer"]["add_prefix_space"] = True
    path.write_text(json.dumps(content))


def other_template(directory: Path) -> None:
    tiny.save_model(directory)
    (directory / "chat_template.jinja").write_text("{{ messages }}")


OTHERS: dict[Callable[[Path], None], str] = {
    wider: r"is \[328, 24\] in it and \[320, 24\] in the first",
    other_architecture: "it is a LlamaForCausalLM, not a GPTNeoXForCausalLM",
    other_vocabulary: "another vocabulary",
    other_splitting: "other settings",
    other_template: "another chat template",
}


@pytest.mark.parametrize("save", OTHERS, ids=lambda save: save.__name__)
def test_models_that_are_no_checkpoints_of_one_run_are_refused(
    save: Callable[[Path], None], run: list[str], tmp_path: Path
) -> None:
    save(tmp_path / "other")
    with pytest.raises(InvalidInput, match=OTHERS[save]) as raised:
        load([*run[:2], str(tmp_path / "other")])
    assert str(raised.value).startswith("models.2: ")


def test_a_checkpoint_that_is_missing_is_named(run: list[str], tmp_path: Path) -> None:
    with pytest.raises(ModelNotFound, match="gone"):
        load([run[0], str(tmp_path / "gone"), run[1]])


def test_checkpoints_take_no_device_map(run: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    places = json.dumps({"gpt_neox": "cpu", "lm_head": "disk"})
    monkeypatch.setenv("BERGSON_DEVICE_MAP", places)
    with pytest.raises(InvalidInput, match="no device map"):
        load(run)
