"""Reads the configuration of LoRA adapters on disk (PEFT), and finds the model that the adapters belong to."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, Final

from bergson_core.errors import ModelNotFound
from bergson_core.models.config_guard import read_json
from bergson_core.utils.safe_regex import MatchMode

ADAPTER_CONFIG_FILE: Final = "adapter_config.json"
ADAPTER_WEIGHTS_FILE: Final = "adapter_model.safetensors"
_MAX_RANK: Final = 10_000


@dataclass(frozen=True)
class AdapterBase:
    """The model that adapters were trained on: a hub id or a directory, and its revision."""

    name: str
    revision: str | None


def read_adapter_base(directory: Path) -> AdapterBase | None:
    """Returns the model that the adapters in a directory belong to, or None where there are no adapters.

    Raises:
        ModelNotFound: The configuration cannot be read, the adapters are not LoRA, would have PEFT import modules by
            name, or have absurd ranks.
    """
    path = directory / ADAPTER_CONFIG_FILE
    if not path.is_file():
        return None
    try:
        config = read_json(path)
        name, revision, kind = config["base_model_name_or_path"], config.get("revision"), config["peft_type"]
        foreign = config.get("megatron_config")
        ranks = [config.get("r", 0), *(config.get("rank_pattern") or {}).values()]
        small = all(0 <= rank <= _MAX_RANK for rank in ranks) and not config.get("layer_replication")
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ModelNotFound(f"{path} is no configuration of adapters: {error!r}") from error
    if (
        kind != "LORA"
        or foreign is not None
        or not isinstance(name, str)
        or not isinstance(revision, str | None)
        or not small
    ):
        raise ModelNotFound(
            f"{path} is of adapters of type {kind!r} of the model {name!r}; expected type LORA, no megatron_config "
            f"and no layer_replication, ranks up to {_MAX_RANK:,}, and the model's hub id or directory"
        )
    return AdapterBase(name, revision)


def read_module_patterns(directory: Path) -> list[tuple[MatchMode, str]]:
    """Returns the regular expressions that PEFT makes of the adapters' configuration and matches with module names."""
    return list(_iter_patterns(read_json(directory / ADAPTER_CONFIG_FILE)))


def _iter_patterns(config: dict[str, Any]) -> Iterator[tuple[MatchMode, str]]:
    """Yields the patterns of `check_target_module_exists` and `get_pattern_key` of PEFT 0.18 to 0.21."""
    for field in ("target_modules", "exclude_modules"):
        if isinstance(pattern := config.get(field), str):
            yield "fullmatch", pattern
    for name in config.get("modules_to_save") or ():
        yield "match", rf"(^|.*\.){name}($|\..*)"
    patterns = config.get("layers_pattern") or ()
    for pattern in [patterns] if isinstance(patterns, str) else patterns:
        yield "match", rf"(?:^|.*?\.){pattern}\.(?P<idx>\d+)\."
    for pattern in chain(config.get("rank_pattern") or (), config.get("alpha_pattern") or ()):
        yield "match", rf"(.*\.)?({pattern})$"
