"""Checks that a job reads only models, datasets and files that the operator allows."""

import os
import re
from collections.abc import Sequence
from fnmatch import fnmatchcase
from itertools import chain
from pathlib import Path

from bergson_core.errors import InvalidInput
from bergson_core.models.files.lora import read_adapter_base
from bergson_core.schemas.build import BuildSpec, DatasetSpec
from worker.settings import Settings

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")


def require_allowed_paths(spec: BuildSpec, settings: Settings) -> None:
    """Raises `InvalidInput` if a build names a hub id or a local path that the operator does not allow.

    A name is local if it exists on this machine. Links and `..` are resolved before a path is compared with the allowed
    directories.

    Args:
        spec: The build.
        settings: What the operator allows.
    """
    _require_allowed("model", spec.model, settings, settings.allowed_models)
    if base := read_adapter_base(Path(spec.model).expanduser()):
        _require_allowed("the model of its adapters", base.name, settings, settings.allowed_models)
    if spec.dataset is not None:
        require_allowed_dataset(spec.dataset, settings)
    if spec.gradients.optimizer_state is not None:
        _require_allowed("gradients.optimizer_state", spec.gradients.optimizer_state, settings, ())


def require_allowed_dataset(dataset: DatasetSpec, settings: Settings) -> None:
    """Raises `InvalidInput` if a dataset has a hub id or a local path that the operator does not allow."""
    _require_allowed("dataset.path", dataset.path, settings, settings.allowed_datasets)


def _require_allowed(field: str, name: str, settings: Settings, hub_patterns: Sequence[str]) -> None:
    """Raises `InvalidInput` if `name` is neither an allowed hub id nor an allowed path.

    The hub ids that match `hub_patterns` are allowed; without patterns only local paths are. If a directory contains
    links, down to the files of its splits, what they link to has to be allowed too.
    """
    try:
        path = Path(name).expanduser()
        is_hub_id = hub_patterns and _HUB_ID.fullmatch(name) and not os.path.lexists(path)
        real_path = path.resolve()
    except (OSError, RuntimeError, ValueError) as error:
        raise InvalidInput(f"{field}: {name!r} is neither a hub id nor a path: {error}") from None
    if is_hub_id:
        if not any(fnmatchcase(name, pattern) for pattern in hub_patterns):
            raise InvalidInput(
                f"{field}: expected a hub id that matches {' or '.join(hub_patterns)}, got {name!r}. The operator "
                "allows more with BERGSON_ALLOWED_MODELS and BERGSON_ALLOWED_DATASETS"
            )
        return
    forbidden = name if not settings.may_read(real_path) else _find_forbidden_link(real_path, settings)
    if forbidden is not None:
        allowed = ", ".join(str(root) for root in settings.readable_roots)
        raise InvalidInput(
            f"{field}: expected a {'hub id or a ' * bool(hub_patterns)}path below {allowed}, outside of what the "
            f"service itself keeps there; got {forbidden!r}. The operator allows more with BERGSON_ALLOWED_ROOTS"
        )


def _find_forbidden_link(directory: Path, settings: Settings) -> str | None:
    links = (path for path in chain(directory.glob("*"), directory.glob("*/*")) if path.is_symlink())
    return next((str(link) for link in links if not _leads_to_allowed(link, settings)), None)


def _leads_to_allowed(link: Path, settings: Settings) -> bool:
    try:
        return settings.may_read(link.resolve())
    except (OSError, RuntimeError):  # the links form a circle
        return False
