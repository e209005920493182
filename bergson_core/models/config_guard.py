"""What the files of a model may not ask for, nor be. No torch here."""

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
_QUANTISED: Final = ("quantization_config", "compression_config")
_READ_WHOLE: Final = (".json", ".txt", ".model", ".jinja")
_MOST_BYTES: Final = 2**27
_MOST_BYTES_OF_CONFIG: Final = 2**24
_NO_JSON: Final = (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError, OverflowError)
"""What reading a file may raise that is none, or says something else than is expected."""


def read_json(path: Path) -> Any:
    """What the file says. Raises OSError, RecursionError, and ValueError, before it is read where it is too large."""
    if (size := path.stat().st_size) > _MOST_BYTES_OF_CONFIG:
        raise ValueError(f"it has {size:,} bytes; expected at most {_MOST_BYTES_OF_CONFIG:,}")
    return json.loads(path.read_bytes())


def require_safe_files(directory: Path) -> None:
    """Raises `ModelNotFound` where a tokenizer or the like is too large to be one, or weights lie elsewhere.

    Such files are read whole, and take ten times their size in memory. An index of weights names files, which
    transformers opens wherever they are.
    """
    for path in sorted(directory.iterdir()):
        if path.suffix in _READ_WHOLE and path.is_file() and (size := path.stat().st_size) > _MOST_BYTES:
            raise ModelNotFound(f"{path} has {size:,} bytes; expected at most {_MOST_BYTES:,}")
    for path in sorted(directory.glob("*.index.json")):
        try:
            names = set(read_json(path)["weight_map"].values())
            wrong = sorted(name for name in names if Path(name).name != name)
        except _NO_JSON as error:
            raise ModelNotFound(f"{path} is no index of weights: {error}") from error
        if wrong:
            raise ModelNotFound(f"{path} names {wrong[0]!r}; expected files of its own")


def require_safe_config(directory: Path) -> None:
    """Raises `ModelNotFound` for a config that is none, or asks for what `_check_field` refuses."""
    path = directory / "config.json"
    try:
        for key, value in _fields(read_json(path)):
            _check_field(path, key, value)
    except ModelNotFound:
        raise
    except _NO_JSON as error:
        raise ModelNotFound(f"{path} is no configuration of a model: {error}") from error


def _check_field(path: Path, key: str, value: Any) -> None:
    """Raises `ModelNotFound` for kernels of the hub, quantised weights, weights elsewhere, absurdly many layers.

    Kernels are foreign code, which transformers fetches by the name in the config, as are the packages that quantised
    weights need. Layers are made before a weight is looked at: 10⁹ of them would fill the memory, whatever the file of
    weights holds.
    """
    if _KERNELS.fullmatch(key) and value not in _OURS:
        raise ModelNotFound(f"{path}: {key} is {value!r}, which may be foreign code; drop it")
    if key in _QUANTISED and value is not None:
        raise ModelNotFound(f"{path}: {key} asks for foreign code; expected weights that are not quantised")
    if key == "transformers_weights" and value is not None and Path(value).name != value:
        raise ModelNotFound(f"{path}: {key} is {value!r}; expected a file beside it")
    if _COUNTS.fullmatch(key) and isinstance(value, int) and not 0 <= value <= _MOST:
        raise ModelNotFound(f"{path}: {key} is {value:.3g}; expected 0 to {_MOST:,}")


def _fields(value: Any) -> Iterator[tuple[str, Any]]:
    """All (key, value) of objects, however deep."""
    for one in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from _fields(one)
    if isinstance(value, dict):
        yield from value.items()
