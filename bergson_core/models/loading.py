"""Loads a causal language model and its tokenizer from a hub id or a directory.

Only safetensors weights are loaded, and only code runs that transformers itself ships: nothing from a model's directory
is executed.
"""

import errno
import os
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Final, cast

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
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from bergson_core.errors import InvalidInput, ModelNotFound
from bergson_core.models.causality import require_causal_config
from bergson_core.models.checkpoints.loading import CheckpointSource, load_checkpoints
from bergson_core.models.files.config_guard import require_safe_config, require_safe_files
from bergson_core.models.files.fingerprint import MODEL_FILE_PATTERNS, ModelFiles
from bergson_core.models.files.lora import (
    ADAPTER_CONFIG_FILE,
    ADAPTER_WEIGHTS_FILE,
    AdapterBase,
    read_adapter_base,
    read_module_patterns,
)
from bergson_core.models.language_model import LanguageModel, as_language_model
from bergson_core.models.offloading import default_device_map, parse_device_map
from bergson_core.schemas.build import DeviceMap
from bergson_core.storage.locations import absolute_path, is_hub_id
from bergson_core.utils import safe_regex
from bergson_core.utils.disk_errors import raise_if_disk_full
from bergson_core.utils.scratch_directories import scratch_directory_until_exit

LoadModel = Callable[..., LanguageModel]
"""A function with the parameters of `load_model`."""

_LOAD_ERRORS: Final = (
    *(OSError, ValueError, LookupError, ImportError, RuntimeError),
    *(TypeError, AttributeError, ArithmeticError, SafetensorError, StrictDataclassError),
)
"""What transformers raises where files are missing, damaged, or hold values that make no sense."""
_OUT_OF_MEMORY_TEXTS: Final = ("not enough memory", "can't allocate memory", "Cannot allocate memory")
"""What torch's allocator for the CPU says, in a plain RuntimeError, and what safetensors says."""


def default_device() -> str:
    """Returns the name of the first GPU, or of the CPU where there is none."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def load_model(
    name: str,
    revision: str | None = None,
    dtype: str = "float32",
    device: str | None = None,
    *,
    device_map: DeviceMap | None = None,
    adapter_base: str | None = None,
    checkpoints: Sequence[CheckpointSource] = (),
) -> LanguageModel:
    """Loads a model and its tokenizer, frozen and in evaluation mode.

    Args:
        name: A hub id or a directory, of a model or of LoRA adapters, which are loaded on top of their model.
        revision: Branch, tag or commit of the hub's repository.
        dtype: The precision of the weights: "float32", "bfloat16" or "float64".
        device: Where to load the model; by default on the first GPU, or on the CPU where there is none.
        device_map: Which parts to load on which GPUs, into the host's memory or from the disk, as in transformers, for
            a model that is larger than one device. By default what the environment variable BERGSON_DEVICE_MAP says,
            unless `device` is given.
        adapter_base: Directory of the model that adapters belong to, in place of the name that they give.
        checkpoints: Checkpoints of the run that the model is the last of, this one included, as (name, revision).

    Raises:
        ModelNotFound: There is no such model, or none that can be loaded from safetensors without foreign code; it is
            no causal language model; or its adapters are not plain LoRA adapters.
        InvalidInput: The model does not fit into memory; the device map is none, or comes with adapters or a device; or
            the checkpoints differ in more than their weights.
    """
    if checkpoints:
        options: dict[str, Any] = {"device_map": device_map, "adapter_base": adapter_base}
        return load_checkpoints(
            checkpoints, lambda name, revision: load_model(name, revision, dtype, device, **options)
        )
    if device_map is not None and device is not None:
        raise InvalidInput("expected device or device_map, got both")
    if device_map is not None:
        device_map = parse_device_map(device_map)
    elif device is None:
        device_map = default_device_map()
    directory = adapters = _resolve(name, revision)
    base = read_adapter_base(adapters)
    if base is not None:
        base = AdapterBase(adapter_base, None) if adapter_base is not None else base
        directory = _resolve_base(base, adapters, os.path.isdir(os.path.expanduser(name)))
    if device_map is not None and base is not None:
        raise InvalidInput(
            f"{name} has adapters, which cannot be loaded with a device map: merge them into the model"
        )
    _require_weights(directory, "*.safetensors")
    for checked in {directory, adapters}:
        require_safe_files(checked)
    require_safe_config(directory)
    with _translate_out_of_memory(name):
        try:
            model, tokenizer = _load(directory, adapters, dtype, device_map)
        except _LOAD_ERRORS as error:
            if is_out_of_memory(error):
                raise
            raise_if_disk_full(error)
            raise ModelNotFound(f"{name} cannot be loaded as a causal language model: {error}") from error
        model.requires_grad_(False).eval()
        if device_map is None:
            nn.Module.to(model, device or default_device())
        try:
            language_model = as_language_model(model, tokenizer)
        except InvalidInput as error:
            raise ModelNotFound(f"{name} cannot be used as a causal language model: {error}") from error
        files = ModelFiles.read(directory, adapters)
        has_local_base = base is not None and _snapshot_commit(directory) is None
        return replace(
            language_model,
            sha256=files.sha256,
            files=files,
            revision=_snapshot_commit(adapters),
            adapter_base=absolute_path(str(directory)) if has_local_base else None,
        )


def _load(
    directory: Path, adapters: Path, dtype: str, device_map: DeviceMap | None
) -> tuple[nn.Module, PreTrainedTokenizerBase]:
    """Loads the model in `directory`, and the adapters in `adapters` where this is another directory."""
    options: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
    # Local files only: the revision was chosen when they were downloaded.
    config = AutoConfig.from_pretrained(directory, **options)  # nosec B615
    require_causal_config(config)
    tokenizer_directory = adapters if (adapters / "tokenizer_config.json").is_file() else directory
    tokenizer = AutoTokenizer.from_pretrained(tokenizer_directory, **options)  # nosec B615
    if device_map is not None:
        options["device_map"] = device_map
        with (
            scratch_directory_until_exit() as directory_of_weights
        ):  # those that are not on the disk as they are used
            options["offload_folder"] = str(directory_of_weights)
    loaded: Any = AutoModelForCausalLM.from_pretrained(  # nosec B615
        directory, use_safetensors=True, dtype=getattr(torch, dtype), output_loading_info=True, **options
    )
    model: nn.Module = loaded[0]
    if missing := sorted(loaded[1]["missing_keys"]):  # these weights would be random numbers
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise ValueError(f"there are no weights for {missing[0]}{more}; expected a model with its head")
    if adapters != directory:
        model = _add_adapters(model, adapters)
    return model, tokenizer


def _add_adapters(model: nn.Module, adapters: Path) -> nn.Module:
    _require_weights(adapters, ADAPTER_WEIGHTS_FILE)
    try:
        from peft import PeftModel
    except ImportError as error:
        raise ModelNotFound(f"{adapters} holds LoRA adapters: pip install 'bergson-service[peft]'") from error
    if patterns := read_module_patterns(adapters):
        # PEFT matches them without a time limit.
        names = [name for name, _ in model.named_modules()]
        safe_regex.match_expressions(f"{adapters / ADAPTER_CONFIG_FILE}", patterns, names)
    adapted = PeftModel.from_pretrained(cast(PreTrainedModel, model), str(adapters))
    # PEFT skips weights that the model has no place for. Loading them once more tells which.
    if unexpected := sorted(adapted.load_adapter(str(adapters), "default").unexpected_keys):
        more = f" and {len(unexpected) - 1} more" if len(unexpected) > 1 else ""
        raise ValueError(
            f"{adapters / ADAPTER_WEIGHTS_FILE} has weights that match no module of its model: {unexpected[0]}{more}; "
            "expected adapters that were trained on this causal language model"
        )
    return adapted


def _require_weights(directory: Path, pattern: str) -> None:
    """Raises `ModelNotFound` where a directory has no file of this pattern."""
    if not any(directory.glob(pattern)):
        raise ModelNotFound(
            f"{directory} has no safetensors weights; expected {pattern.replace('*', 'model')} (pickle is never loaded)"
        )


@contextmanager
def _translate_out_of_memory(name: str) -> Iterator[None]:
    """Raises `InvalidInput` where a model does not fit into memory: it exists, and the machine is too small for it."""
    try:
        yield
    except (MemoryError, RuntimeError, OSError, SafetensorError) as error:
        if not is_out_of_memory(error):
            raise
        raise InvalidInput(
            f"the model {name} does not fit into memory: expected dtype bfloat16, a smaller model, or a larger "
            f"device; {error}"
        ) from error


def is_out_of_memory(error: BaseException) -> bool:
    """Returns whether an error says that there is no memory left, on the device or on the host."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    if isinstance(error, OSError) and error.errno == errno.ENOMEM:
        return True
    return isinstance(error, RuntimeError | SafetensorError) and any(
        text in str(error) for text in _OUT_OF_MEMORY_TEXTS
    )


def _resolve(name: str, revision: str | None) -> Path:
    """Returns the directory with the files of a model: `name` itself, or a snapshot of the hub's repository."""
    path = Path(name).expanduser()
    is_of_hub = revision is not None and is_hub_id(name)  # A directory has no revisions.
    if os.path.isdir(path) and not is_of_hub:
        if not any((path / config).is_file() for config in ("config.json", ADAPTER_CONFIG_FILE)):
            raise ModelNotFound(f"{path} has no config.json; expected a directory written by save_pretrained")
        return path
    if not is_of_hub and (os.path.exists(path) or name.startswith(("/", "./", "../", "~"))):
        raise ModelNotFound(f"no model directory at {name}; expected a directory written by save_pretrained")
    try:
        return Path(snapshot_download(name, revision=revision, allow_patterns=[*MODEL_FILE_PATTERNS]))
    except RepositoryNotFoundError as error:
        raise ModelNotFound(f"no model {name!r} on the hub, nor a directory of that name") from error
    except (LocalEntryNotFoundError, HfHubHTTPError, OSError, ValueError, ImportError) as error:
        # httpx raises an ImportError where it lacks the package for a SOCKS proxy.
        raise_if_disk_full(error)
        raise ModelNotFound(
            f"model {name!r} is not a local directory, and the hub did not return it: {error}"
        ) from error


def _resolve_base(base: AdapterBase, adapters: Path, local: bool) -> Path:
    """Returns the directory of the model that adapters belong to.

    Adapters of the hub may not name a local model, and no adapters may name other adapters.
    """
    if not local and os.path.exists(os.path.expanduser(base.name)):
        raise ModelNotFound(f"the adapters are of the local model {base.name!r}; expected a hub id")
    directory = _resolve(base.name, base.revision)
    if read_adapter_base(directory):
        raise ModelNotFound(
            f"{adapters} has adapters of {base.name}, which are adapters too; expected a whole model"
        )
    return directory


def _snapshot_commit(directory: Path) -> str | None:
    """Returns the commit of a snapshot in the hub's cache, or None for another directory."""
    is_snapshot = directory.parent.name == "snapshots" and re.fullmatch("[0-9a-f]{40}", directory.name)
    return directory.name if is_snapshot else None
