"""Loads a causal language model and its tokenizer, and knows where its head begins.

Only safetensors weights and only code that transformers itself ships: nothing from a model's directory is run.
"""

import hashlib
import re
from collections.abc import Callable
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import (
    HfHubHTTPError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    StrictDataclassError,
)
from safetensors import SafetensorError
from torch import nn
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from bergson_core.errors import ModelNotFound
from bergson_core.models.config_guard import require_safe_config, require_safe_files
from bergson_core.models.language_model import LanguageModel, as_language_model
from bergson_core.models.lora import (
    ADAPTER_CONFIG_FILE,
    ADAPTER_WEIGHTS_FILE,
    AdapterBase,
    read_adapter_base,
    read_module_patterns,
)
from bergson_core.utils import safe_regex

if TYPE_CHECKING:
    pass

_UNFIT = (
    *(OSError, ValueError, LookupError, ImportError, RuntimeError, MemoryError),
    *(TypeError, AttributeError, ArithmeticError, SafetensorError, StrictDataclassError),
)
"""What transformers raises where files are missing, damaged, or say what makes no sense."""
_FILES = ["*.json", "*.safetensors", "*.txt", "*.model", "*.jinja"]


def default_device() -> str:
    """The first GPU, or the CPU."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def load_model(
    name: str, revision: str | None = None, dtype: str = "float32", device: str | None = None
) -> LanguageModel:
    """The model and tokenizer of a hub id or a directory, frozen, in evaluation mode; LoRA adapters on their model.

    Raises `ModelNotFound` where there is none, or none that can be loaded from safetensors without foreign code.
    """
    directory = adapters = _resolve(name, revision)
    if base := read_adapter_base(adapters):
        directory = _resolve_base(base, adapters, Path(name).expanduser().is_dir())
    options: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
    _check_weights(directory, "*.safetensors")
    for one in {directory, adapters}:
        require_safe_files(one)
    require_safe_config(directory)
    try:
        with_tokens = adapters if (adapters / "tokenizer_config.json").is_file() else directory
        tokenizer = AutoTokenizer.from_pretrained(with_tokens, **options)
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            directory, use_safetensors=True, dtype=getattr(torch, dtype), output_loading_info=True, **options
        )
        model: nn.Module = loaded[0]
        if missing := sorted(loaded[1]["missing_keys"]):  # they would be random numbers
            raise ValueError(f"there are no weights for {missing[0]} and {len(missing) - 1} more")
        if base:
            model = _with_adapters(model, adapters)
    except _UNFIT as error:
        raise ModelNotFound(f"{name} cannot be loaded as a causal language model: {error}") from error
    model.requires_grad_(False).eval()
    nn.Module.to(model, device or default_device())
    sha256 = _content_hash(*dict.fromkeys((directory, adapters)))
    return replace(as_language_model(model, tokenizer, sha256), revision=_commit(adapters))


def _check_weights(directory: Path, pattern: str) -> None:
    if not any(directory.glob(pattern)):
        raise ModelNotFound(
            f"{directory} has no safetensors weights; expected {pattern.replace('*', 'model')} (pickle is never loaded)"
        )


def _resolve_base(base: AdapterBase, adapters: Path, local: bool) -> Path:
    """The directory of the model that adapters belong to.

    Adapters of the hub name no local model, and none name adapters in turn.
    """
    if not local and Path(base.name).expanduser().exists():
        raise ModelNotFound(f"the adapters are of the local model {base.name!r}; expected a hub id")
    directory = _resolve(base.name, base.revision)
    if read_adapter_base(directory):
        raise ModelNotFound(
            f"{adapters} has adapters of {base.name}, which are adapters too; expected a whole model"
        )
    return directory


def _with_adapters(model: nn.Module, adapters: Path) -> nn.Module:
    _check_weights(adapters, ADAPTER_WEIGHTS_FILE)
    try:
        from peft import PeftModel
    except ImportError as error:
        raise ModelNotFound(f"{adapters} holds LoRA adapters: pip install 'bergson-service[peft]'") from error
    if searched := read_module_patterns(adapters):
        names = [name for name, _ in model.named_modules()]
        safe_regex.match_expressions(f"{adapters / ADAPTER_CONFIG_FILE}", searched, names)
    return PeftModel.from_pretrained(cast(PreTrainedModel, model), str(adapters))


def _resolve(name: str, revision: str | None) -> Path:
    """The directory with the files: `name` itself, or a snapshot of the hub repository."""
    path = Path(name).expanduser()
    if path.is_dir():
        if not any((path / config).is_file() for config in ("config.json", ADAPTER_CONFIG_FILE)):
            raise ModelNotFound(f"{path} has no config.json; expected a directory written by save_pretrained")
        return path
    if path.exists() or name.startswith(("/", "./", "../", "~")):
        raise ModelNotFound(f"no model directory at {name}; expected a directory written by save_pretrained")
    try:
        return Path(snapshot_download(name, revision=revision, allow_patterns=_FILES))
    except RepositoryNotFoundError as error:
        raise ModelNotFound(f"no model {name!r} on the hub, nor a directory of that name") from error
    except (LocalEntryNotFoundError, HfHubHTTPError, OSError, ValueError) as error:
        raise ModelNotFound(
            f"model {name!r} is no local directory, and the hub did not give it: {error}"
        ) from error


def _commit(directory: Path) -> str | None:
    """The commit of a snapshot in the hub's cache, None for another directory."""
    is_snapshot = directory.parent.name == "snapshots" and re.fullmatch("[0-9a-f]{40}", directory.name)
    return directory.name if is_snapshot else None


def _content_hash(*directories: Path) -> str:
    """sha256 over the names and contents of config, weights and tokenizer."""
    digest = hashlib.sha256()
    files = [sorted({*one.glob("*.json"), *one.glob("*.safetensors")}) for one in directories]
    for path in chain.from_iterable(files):
        digest.update(f"{path.name}\0{path.stat().st_size}\0".encode())
        with path.open("rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()


LoadModel = Callable[..., LanguageModel]
