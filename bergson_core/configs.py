"""What a model's config.json may not ask for. No torch here."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from bergson_core.errors import ModelNotFound

_KERNELS: Final = re.compile(r"_?(attn|experts)_implementation(_internal)?")
_OURS: Final = (None, "eager", "sdpa", "batched_mm", "grouped_mm")
_COUNTS: Final = re.compile(r"n_layer|(n|num)_(\w+_)?(layers|blocks|experts)")
_MOST: Final = 10_000


def check_config(directory: Path) -> None:
    """Raises `ModelNotFound` for a config that is none, asks for kernels of the hub, or for absurdly many layers.

    Kernels are foreign code, which transformers fetches by the name in the config. Layers are made before a weight is
    looked at: 10⁹ of them would fill the memory, whatever the file of weights holds.
    """
    path = directory / "config.json"
    try:
        config = json.loads(path.read_bytes())
        for key, value in _fields(config):
            if _KERNELS.fullmatch(key) and value not in _OURS:
                raise ModelNotFound(f"{path}: {key} is {value!r}, which may be foreign code; drop it")
            if _COUNTS.fullmatch(key) and isinstance(value, int) and not 0 <= value <= _MOST:
                raise ModelNotFound(f"{path}: {key} is {value:.3g}; expected 0 to {_MOST:,}")
    except ModelNotFound:
        raise
    except (OSError, ValueError, RecursionError, OverflowError) as error:
        raise ModelNotFound(f"{path} is no configuration of a model: {error}") from error


def _fields(value: Any) -> Iterator[tuple[str, Any]]:
    """All (key, value) of objects, however deep."""
    for one in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from _fields(one)
    if isinstance(value, dict):
        yield from value.items()
