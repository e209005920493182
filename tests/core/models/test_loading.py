"""`load_model` tells a model that does not exist from one that is too large for the machine."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from bergson_core.errors import InvalidInput, ModelNotFound
from bergson_core.models import loading
from bergson_core.models.loading import load_model
from tests import tiny


def use_up_host_memory() -> None:
    raise MemoryError


def use_up_device_memory() -> None:
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")


def use_up_torchs_host_memory() -> None:
    torch.empty(2**62, dtype=torch.uint8)


SHORTAGES = [use_up_host_memory, use_up_device_memory, use_up_torchs_host_memory]


@pytest.mark.parametrize("use_up", SHORTAGES)
def test_a_model_that_does_not_fit_into_memory_is_not_called_missing(
    use_up: Callable[[], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    path = str(tiny.save_model(tmp_path / "model"))

    def load(*_args: object, **_options: object) -> None:
        use_up()

    monkeypatch.setattr(loading.AutoModelForCausalLM, "from_pretrained", load)
    with pytest.raises(InvalidInput, match=r"does not fit into memory.*bfloat16") as raised:
        load_model(path)
    assert not isinstance(raised.value, ModelNotFound)


def test_a_device_that_is_too_small_for_a_loaded_model_is_told_in_the_same_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    path = str(tiny.save_model(tmp_path / "model"))
    monkeypatch.setattr(torch.nn.Module, "to", lambda *_args, **_options: use_up_device_memory())
    with pytest.raises(InvalidInput, match=r"does not fit into memory.*2\.00 GiB"):
        load_model(path)


def test_a_hub_that_cannot_be_asked_is_an_error_of_ours(monkeypatch: pytest.MonkeyPatch):
    def download(*_args: object, **_options: object) -> None:
        raise ImportError("Using SOCKS proxy, but the 'socksio' package is not installed.")

    monkeypatch.setattr(loading, "snapshot_download", download)
    with pytest.raises(ModelNotFound, match="the hub did not return it: Using SOCKS proxy"):
        load_model("gpt2")


@pytest.mark.parametrize("name", ["x" * 300, "./" + "x" * 300, "/" + "x" * 300])
def test_a_name_that_is_too_long_for_a_file_is_a_model_that_does_not_exist(
    name: str, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(ModelNotFound):
        load_model(name)


def test_a_model_that_is_damaged_is_not_called_too_large(tmp_path: Path):
    model = tiny.save_model(tmp_path / "model")
    (model / "model.safetensors").write_bytes(b"no weights")
    with pytest.raises(ModelNotFound, match="cannot be loaded"):
        load_model(str(model))
