"""Where the model and the dataset of an index are: a hub id, or a path that means the same from every directory.

A build turns every local path into an absolute one before it does anything else, so that an index can be queried from
another directory, and so that a name that was a path is never looked up on the hub. In the manifest on disk, a path
inside the directory of the index itself begins with `./` and is relative to that directory, so that both can be moved
together.
"""

import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from bergson_core.schemas.build import BuildSpec
from bergson_core.schemas.build_parts.checkpoints import split_revision
from bergson_core.schemas.source import DatasetSpec

_HUB_ID: Final = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")
_INSIDE: Final = "./"


def is_hub_id(name: str) -> bool:
    """Returns whether a name has the form of a hub id. A relative path may have it as well."""
    return _HUB_ID.fullmatch(name) is not None


def is_local(name: str) -> bool:
    """Returns whether a model or a dataset is on this machine: it exists here, or its name cannot be a hub id."""
    if "\0" in name or "://" in name:
        return False
    return not is_hub_id(name) or os.path.lexists(os.path.expanduser(name))


def absolute_path(path: str) -> str:
    """Returns a path from the root, without `~`, `..` and links.

    Only the directory of a file is resolved: a file that is a link, as in the cache of the hub, may point to a file
    whose name does not say what is in it.
    """
    path = os.path.expanduser(path).rstrip(os.sep) or os.sep
    if os.path.isdir(path):
        return os.path.realpath(path)
    return os.path.join(os.path.realpath(os.path.dirname(path)), os.path.basename(path))


def locate(name: str) -> str:
    """Returns the absolute path of a model or a dataset on this machine, and any other name as it is."""
    return absolute_path(name) if is_local(name) else name


def locate_dataset(dataset: DatasetSpec) -> DatasetSpec:
    """Returns the dataset with an absolute path, if it is on this machine."""
    return dataset.model_copy(update={"path": locate(dataset.path)})


def locate_sources(spec: BuildSpec) -> BuildSpec:
    """Returns the spec with absolute paths of its models, the dataset and the optimizer's checkpoint."""
    return _replace_names(spec, locate, absolute_path)


def without_paths(spec: BuildSpec) -> BuildSpec:
    """Returns the spec without its absolute paths, for a hash of what is at these paths rather than of where it is."""
    return _replace_names(spec, lambda name: "path" if os.path.isabs(name) else name)


def names_on_disk(spec: BuildSpec, root: Path) -> BuildSpec:
    """Returns the spec as the manifest of the index in `root` has it."""
    return _replace_names(spec, lambda name: name_on_disk(name, root))


def name_on_disk(name: str, root: Path) -> str:
    """Returns a path inside the index in `root` relative to it, with `./` in front, and any other name as it is."""
    directory = os.path.realpath(root)
    is_inside = os.path.isabs(name) and name.startswith(f"{directory}{os.sep}")
    return _INSIDE + os.path.relpath(name, directory) if is_inside else name


def names_in_memory(spec: BuildSpec, root: Path) -> BuildSpec:
    """Returns the spec of the manifest of the index in `root`, with the paths inside the index from the root."""
    return _replace_names(spec, lambda name: name_in_memory(name, root))


def name_in_memory(name: str, root: Path) -> str:
    """Returns the absolute path of what `name_on_disk` made relative to the index in `root`.

    Release 0.1.0 stored paths as they were given. One that began with `./` was relative to the working directory.
    """
    path = os.path.join(os.path.realpath(root), name.removeprefix(_INSIDE))
    return path if name.startswith(_INSIDE) and os.path.lexists(path) else name


def sources_inside(spec: BuildSpec, root: Path) -> set[str]:
    """Returns the names of the entries of the directory `root` that hold the model or the dataset of a located spec."""
    names = [
        spec.model,
        *spec.models,
        spec.reference_model,
        spec.gradients.optimizer_state,
        spec.dataset and spec.dataset.path,
    ]
    inside = [name_on_disk(name, root) for name in names if name is not None]
    return {name.removeprefix(_INSIDE).split(os.sep)[0] for name in inside if name.startswith(_INSIDE)}


def _replace_names(
    spec: BuildSpec, replace: Callable[[str], str], replace_path: Callable[[str], str] | None = None
) -> BuildSpec:
    """Returns the spec with other names of its models, its dataset and the checkpoint of its optimizer."""
    changes: dict[str, Any] = {"model": replace(spec.model)}
    if spec.models:
        changes["models"] = tuple(_replace_checkpoint(name, replace) for name in spec.models)
    if spec.reference_model is not None:
        changes["reference_model"] = replace(spec.reference_model)
    if spec.dataset is not None:
        changes["dataset"] = spec.dataset.model_copy(update={"path": replace(spec.dataset.path)})
    if (checkpoint := spec.gradients.optimizer_state) is not None:
        path = (replace_path or replace)(checkpoint)
        changes["gradients"] = spec.gradients.model_copy(update={"optimizer_state": path})
    return spec.model_copy(update=changes)


def _replace_checkpoint(name: str, replace: Callable[[str], str]) -> str:
    """Returns a checkpoint with another name and the revision that it has."""
    model, revision = split_revision(name)
    return replace(model) if revision is None else f"{replace(model)}@{revision}"
