"""Refuses the files of a model that are too large, ask for foreign code, or name files elsewhere.

What is checked here is read before transformers reads it: the files come from strangers.
"""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from bergson_core.errors import ModelNotFound

_KERNEL_FIELD: Final = re.compile(r"_?(attn|experts)_implementation(_internal)?")
_BUILT_IN_KERNELS: Final = (None, "eager", "sdpa", "batched_mm", "grouped_mm")
_COUNT_FIELD: Final = re.compile(r"n_layer|(n|num)_(\w+_)?(layers|blocks|experts)")
_MAX_COUNT: Final = 10_000
_QUANTISATION_FIELDS: Final = ("quantization_config", "compression_config")
_SUFFIXES_READ_WHOLE: Final = (
    *(".json", ".txt", ".model", ".jinja", ".spm", ".tiktoken", ".codes", ".tokenizer"),
)
_MAX_FILE_BYTES: Final = 2**27
_MAX_CONFIG_BYTES: Final = 2**24
_READ_ERRORS: Final = (
    *(OSError, ValueError, LookupError, TypeError),
    *(AttributeError, RecursionError, OverflowError),
)
"""What reading a file may raise that is not JSON, or holds something else than is expected."""


def read_json(path: Path) -> Any:
    """Returns the content of a JSON file.

    Raises:
        ValueError: The file is not JSON, or is too large; a file that is too large is not read.
        RecursionError: The file nests values too deeply.
        OSError: The file cannot be read.
    """
    if (size := path.stat().st_size) > _MAX_CONFIG_BYTES:
        raise ValueError(f"it has {size:,} bytes; expected at most {_MAX_CONFIG_BYTES:,}")
    return json.loads(path.read_bytes())


def require_safe_files(directory: Path) -> None:
    """Checks the sizes of the files in a model's directory, and where its index of weights says that weights lie.

    A tokenizer or the like is read whole, and takes ten times its size in memory. An index of weights names files,
    which transformers opens wherever they are.

    Raises:
        ModelNotFound: A file that is read whole is too large, or an index of weights names a file elsewhere.
    """
    for path in sorted([*directory.iterdir(), *directory.glob("*/*.jinja")]):
        is_read_whole = path.suffix in _SUFFIXES_READ_WHOLE and path.is_file()
        if is_read_whole and (size := path.stat().st_size) > _MAX_FILE_BYTES:
            raise ModelNotFound(f"{path} has {size:,} bytes; expected at most {_MAX_FILE_BYTES:,}")
    for path in sorted(directory.glob("*.index.json")):
        try:
            names = set(read_json(path)["weight_map"].values())
            elsewhere = sorted(name for name in names if Path(name).name != name)
        except _READ_ERRORS as error:
            raise ModelNotFound(f"{path} is not an index of weights: {error}") from error
        if elsewhere:
            raise ModelNotFound(f"{path} names {elsewhere[0]!r}; expected only files in its own directory")


def require_safe_config(directory: Path) -> None:
    """Checks every field of a model's config.json, however deeply it is nested.

    Raises:
        ModelNotFound: The file is not a configuration, or a field asks for code from a third party, for weights
            elsewhere, or for absurdly many layers or experts.
    """
    path = directory / "config.json"
    try:
        for key, value in _iter_fields(read_json(path)):
            _check_field(path, key, value)
    except ModelNotFound:
        raise
    except _READ_ERRORS as error:
        raise ModelNotFound(f"{path} is not a configuration of a model: {error}") from error


def _check_field(path: Path, key: str, value: Any) -> None:
    """Raises `ModelNotFound` for a field that asks for something that is not allowed.

    Kernels are foreign code, which transformers fetches by the name in the config, as are the packages that quantised
    weights need. Layers are made before any weight is read: 10⁹ of them would fill the memory, whatever the file of
    weights holds.
    """
    if _KERNEL_FIELD.fullmatch(key) and value not in _BUILT_IN_KERNELS:
        raise ModelNotFound(f"{path}: {key} is {value!r}, which may be code from a third party; remove it")
    if key in _QUANTISATION_FIELDS and value is not None:
        raise ModelNotFound(
            f"{path}: {key} asks for code from a third party; expected weights that are not quantised"
        )
    if key == "transformers_weights" and value is not None and Path(value).name != value:
        raise ModelNotFound(f"{path}: {key} is {value!r}; expected a file in the same directory")
    if _COUNT_FIELD.fullmatch(key) and isinstance(value, int) and not 0 <= value <= _MAX_COUNT:
        raise ModelNotFound(f"{path}: {key} is {value:.3g}; expected 0 to {_MAX_COUNT:,}")


def _iter_fields(value: Any) -> Iterator[tuple[str, Any]]:
    """Yields (key, value) of every object inside a JSON value."""
    children = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    for child in children:
        yield from _iter_fields(child)
    if isinstance(value, dict):
        yield from value.items()
