"""Checks that a job reads only models, datasets and files that the operator allows."""

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from fnmatch import fnmatchcase
from itertools import chain
from pathlib import Path

from bergson_core.data.files.paths import (
    SAVED_DATASET_FILES,
    has_file_suffix,
    is_pattern,
    match_pattern,
    pattern_base,
)
from bergson_core.errors import InvalidInput
from bergson_core.models.files.lora import read_adapter_base
from bergson_core.schemas.build import BuildSpec
from bergson_core.schemas.build_parts.checkpoints import split_revision
from bergson_core.schemas.source import DatasetSpec
from bergson_core.storage.locations import is_hub_id
from worker.settings import Settings


def require_allowed_paths(spec: BuildSpec, settings: Settings) -> None:
    """Raises `InvalidInput` if a build names a hub id or a local path that the operator does not allow.

    A name is local if it exists on this machine. Links and `..` are resolved before a path is compared with the allowed
    directories.

    Args:
        spec: The build.
        settings: What the operator allows.
    """
    for number, checkpoint in enumerate(spec.models):
        _require_allowed_model(f"models.{number}", split_revision(checkpoint)[0], settings)
    _require_allowed_model("model", spec.model, settings)
    if spec.reference_model is not None:
        _require_allowed_model("reference_model", spec.reference_model, settings)
    if spec.dataset is not None:
        require_allowed_dataset(spec.dataset, settings)
    if spec.gradients.optimizer_state is not None:
        _require_allowed("gradients.optimizer_state", spec.gradients.optimizer_state, settings, ())


def _require_allowed_model(field: str, name: str, settings: Settings) -> None:
    """Raises `InvalidInput` if a model, or the model that its adapters belong to, is not allowed."""
    _require_allowed(field, name, settings, settings.allowed_models)
    if base := read_adapter_base(Path(name).expanduser()):
        _require_allowed("the model of its adapters", base.name, settings, settings.allowed_models)


def require_allowed_dataset(dataset: DatasetSpec, settings: Settings) -> None:
    """Raises `InvalidInput` if a dataset has a hub id or a local path that the operator does not allow.

    Of a pattern, the directory that it starts from has to be allowed, then every directory that it leads through,
    before anything in it is looked at, and then every file that matches it. So nobody learns from it which files there
    are elsewhere. Of a directory of files only these are read, so that its other links do not matter.
    """
    try:
        base = _resolve(pattern_base(dataset.path)) if is_pattern(dataset.path) else None
    except (OSError, RuntimeError, ValueError) as error:
        raise InvalidInput(f"dataset.path: {dataset.path!r} is not a pattern of paths: {error}") from None
    if base is None:
        _require_allowed(
            "dataset.path", dataset.path, settings, settings.allowed_datasets, _iter_links_of_dataset
        )
        return

    def require_step(step: Path) -> None:
        if not _leads_to_allowed(step, settings):
            raise _forbidden_path("dataset.path", str(step), settings, "hub id or a path")

    if not settings.may_read(base):
        raise _forbidden_path("dataset.path", dataset.path, settings, "hub id or a path")
    for file in match_pattern(dataset.path, require_step):
        require_step(file.path)


def _iter_links(directory: Path) -> Iterator[Path]:
    """Yields the links in a directory and in the directories in it."""
    return (path for path in chain(directory.glob("*"), directory.glob("*/*")) if path.is_symlink())


def _iter_links_of_dataset(directory: Path) -> Iterator[Path]:
    """Yields the links that reading a dataset may follow: those of its files, or all that `save_to_disk` wrote."""
    if any(os.path.lexists(directory / name) for name in SAVED_DATASET_FILES):
        return _iter_links(directory)
    return (path for path in directory.glob("*") if path.is_symlink() and has_file_suffix(path.name))


def _require_allowed(
    field: str,
    name: str,
    settings: Settings,
    hub_patterns: Sequence[str],
    iter_links: Callable[[Path], Iterator[Path]] = _iter_links,
) -> None:
    """Raises `InvalidInput` if `name` is neither an allowed hub id nor an allowed path.

    The hub ids that match `hub_patterns` are allowed; without patterns only local paths are. If a directory contains
    links that `iter_links` yields, what they link to has to be allowed too.
    """
    try:
        path = Path(name).expanduser()
        is_of_hub = hub_patterns and is_hub_id(name) and not os.path.lexists(path)
        real_path = _resolve(path)
        link = _find_forbidden(iter_links(real_path), settings)
    except (OSError, RuntimeError, ValueError) as error:
        raise InvalidInput(f"{field}: {name!r} is neither a hub id nor a path: {error}") from None
    if is_of_hub:
        if not any(fnmatchcase(name, pattern) for pattern in hub_patterns):
            raise InvalidInput(
                f"{field}: expected a hub id that matches {' or '.join(hub_patterns)}, got {name!r}. The operator "
                "allows more with BERGSON_ALLOWED_MODELS and BERGSON_ALLOWED_DATASETS"
            )
        return
    forbidden = name if not settings.may_read(real_path) else link
    if forbidden is not None:
        raise _forbidden_path(field, forbidden, settings, "hub id or a path" if hub_patterns else "path")


def _forbidden_path(field: str, path: str, settings: Settings, expected: str) -> InvalidInput:
    allowed = ", ".join(str(root) for root in settings.readable_roots)
    return InvalidInput(
        f"{field}: expected a {expected} below {allowed}, outside of the service's own files; got "
        f"{path!r}{_explain(Path(path).expanduser())}. The operator can allow more with BERGSON_ALLOWED_ROOTS"
    )


def _explain(path: Path) -> str:
    """Returns what a relative path means here: its sender does not know where the worker was started."""
    return "" if path.is_absolute() else f", a relative path, which the worker takes for {path.absolute()}"


def _find_forbidden(paths: Iterable[Path], settings: Settings) -> str | None:
    return next((str(path) for path in paths if not _leads_to_allowed(path, settings)), None)


def _leads_to_allowed(link: Path, settings: Settings) -> bool:
    try:
        return settings.may_read(_resolve(link))
    except (OSError, RuntimeError):
        return False


def _resolve(path: Path) -> Path:
    """Returns the path without links and `..`; nothing needs to exist there.

    Raises:
        OSError: The links form a circle, or a name is too long. From Python 3.13 on, `Path.resolve` returns these.
        RuntimeError: The same, up to Python 3.12.
    """
    resolved = path.resolve()
    with suppress(FileNotFoundError, NotADirectoryError, PermissionError):
        resolved.stat()
    return resolved
