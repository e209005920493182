"""Adapters on disk: a directory of PEFT's with LoRA weights, and the model that they belong to. No torch here."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from bergson_core.errors import ModelNotFound

CONFIG: Final = "adapter_config.json"
WEIGHTS: Final = "adapter_model.safetensors"


@dataclass(frozen=True)
class AdapterBase:
    """The model that adapters were trained on: a hub id or a directory, and its revision."""

    name: str
    revision: str | None


def adapter_base(directory: Path) -> AdapterBase | None:
    """What the adapters in `directory` belong to; None where there are none.

    Raises `ModelNotFound` for other adapters than LoRA, or such as would have PEFT import modules by name.
    """
    path = directory / CONFIG
    if not path.is_file():
        return None
    try:
        config = json.loads(path.read_bytes())
        name, revision, kind = config["base_model_name_or_path"], config.get("revision"), config["peft_type"]
        foreign = config.get("megatron_config")
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ModelNotFound(f"{path} is no configuration of adapters: {error!r}") from error
    if (
        kind != "LORA"
        or foreign is not None
        or not isinstance(name, str)
        or not isinstance(revision, str | None)
    ):
        raise ModelNotFound(
            f"{path} is of adapters of type {kind!r} of the model {name!r}; expected type LORA, no megatron_config, "
            "and the model's hub id or directory"
        )
    return AdapterBase(name, revision)
