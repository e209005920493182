"""Reads the configuration of LoRA adapters on disk (PEFT), and finds the model that the adapters belong to."""

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, Final

from bergson_core.errors import ModelNotFound
from bergson_core.models.files.config_guard import read_json
from bergson_core.utils.safe_regex import MatchMode

ADAPTER_CONFIG_FILE: Final = "adapter_config.json"
ADAPTER_WEIGHTS_FILE: Final = "adapter_model.safetensors"
_MAX_RANK: Final = 10_000
_MAX_PARENTS: Final = 3
"""How many directories above the adapters a relative path to their model may start from."""
_SUPPORTED_FIELDS: Final = frozenset(
    "peft_type peft_version task_type auto_mapping inference_mode base_model_name_or_path revision r rank_pattern "
    "lora_alpha alpha_pattern use_rslora lora_dropout fan_in_fan_out bias modules_to_save ensure_weight_tying "
    "target_modules exclude_modules layers_to_transform layers_pattern init_lora_weights runtime_config loftq_config "
    "eva_config corda_config lora_ga_config qalora_group_size".split()
)
"""Fields of PEFT's `LoraConfig` that may have any value: which modules have adapters, of what rank and scale, and what
the adapters were before training. Each of the other fields makes another kind of adapters of them."""
_DEFAULTS: Final = {"megatron_core": "megatron.core"}
"""Values of other fields, neither false nor empty, that the configuration of plain LoRA adapters has."""
_TASKS: Final = (None, "CAUSAL_LM")
"""Tasks of adapters of a causal language model; those of other tasks were trained with another head."""

_MERGE_HINT: Final = "Adapters that can be merged into their model (merge_and_unload) can be used merged"


@dataclass(frozen=True)
class AdapterBase:
    """The model that adapters were trained on: a hub id or a directory, and its revision."""

    name: str
    revision: str | None


def describe_unsupported(config: Mapping[str, Any]) -> str | None:
    """Returns what a PEFT configuration has and what was expected, unless it is of plain LoRA adapters.

    The rows of an index are the gradients of Linear modules. Other adapters have other weights as well: of DoRA, for
    example, the magnitudes are trained too, and they scale what the modules return.
    """
    kind = getattr(config["peft_type"], "value", config["peft_type"])
    if kind != "LORA":
        return f"adapters of type {kind}; expected type LORA. {_MERGE_HINT}"
    for field, value in config.items():
        if field not in _SUPPORTED_FIELDS and value and value != _DEFAULTS.get(field):
            return f"{field} {value!r:.100}; expected plain LoRA adapters, with no {field}. {_MERGE_HINT}"
    if (task := config.get("task_type")) not in _TASKS:
        return (
            f"task_type {getattr(task, 'value', task)!r:.100}; expected task_type CAUSAL_LM or null, since adapters of "
            "another task were trained with another head than that of the language model"
        )
    return None


def read_adapter_base(directory: Path) -> AdapterBase | None:
    """Returns the model that the adapters in a directory belong to, or None where there are no adapters.

    Raises:
        ModelNotFound: The configuration cannot be read, the adapters are not plain LoRA adapters, or they have absurd
            ranks.
    """
    path = directory / ADAPTER_CONFIG_FILE
    if not os.path.isfile(path):  # also where a name is too long
        return None
    try:
        config = read_json(path)
        name, revision = config["base_model_name_or_path"], config.get("revision")
        unsupported = describe_unsupported(config)
        ranks = [config.get("r", 0), *(config.get("rank_pattern") or {}).values()]
        has_small_ranks = all(0 <= rank <= _MAX_RANK for rank in ranks)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ModelNotFound(f"{path} is not a configuration of adapters: {error!r}") from error
    if unsupported is not None:
        raise ModelNotFound(f"{path} has {unsupported}")
    if not has_small_ranks or not isinstance(name, str) or not isinstance(revision, str | None):
        raise ModelNotFound(
            f"{path} has adapters of ranks {ranks} of the model {name!r}; expected ranks up to {_MAX_RANK:,}, and "
            "the model's hub id or directory"
        )
    return AdapterBase(_find_base(name, directory), revision)


def _find_base(name: str, adapters: Path) -> str:
    """Returns the model's directory where `name` is a relative path that leads to one, else `name`.

    PEFT writes the path as it was given, relative to the directory in which the training ran. The adapters lie mostly
    somewhere below that directory. Adapters of the hub name a model of the hub.
    """
    try:
        relative, directory = Path(name).expanduser(), adapters.absolute()
        if relative.is_absolute() or relative.is_dir() or directory.parent.name == "snapshots":
            return name
        candidates = (parent / relative for parent in (directory, *directory.parents[:_MAX_PARENTS]))
        return next((str(path) for path in candidates if (path / "config.json").is_file()), name)
    except (OSError, RuntimeError, ValueError):  # no path at all
        return name


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
