"""Directories of models, each named by a hash of everything that its model was made from."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from bergson_core.utils.atomic_files import atomic_directory

_VERSION: Final = 1
"""Raise it when the code that makes models changes what it makes."""


def cached_model(cache: Path, name: str, inputs: Any, make: Callable[[Path], None]) -> Path:
    """Returns the directory of a model, which is made if it is not there.

    Args:
        cache: Directory that keeps models.
        name: The first part of the directory's name.
        inputs: Everything that the model depends on except the versions of libraries, as JSON.
        make: Writes the model into an empty directory.
    """
    digest = hashlib.sha256(json.dumps([_VERSION, inputs], sort_keys=True).encode()).hexdigest()
    directory = cache.expanduser().absolute() / "models" / f"{name}-{digest[:16]}"
    if not directory.exists():
        directory.parent.mkdir(parents=True, exist_ok=True)
        with atomic_directory(directory) as temporary:
            make(temporary)
    return directory
