"""Records where the model and the dataset of an index are now, after they or the index have been moved."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bergson_core.errors import DatasetNotFound, IndexCorrupt, InvalidInput, ModelNotFound
from bergson_core.indexing.output_directory import index_write_lock
from bergson_core.models.files.lora import read_adapter_base
from bergson_core.models.index_model import load_index_model
from bergson_core.models.loading import load_model
from bergson_core.storage.locations import absolute_path
from bergson_core.storage.manifest import Manifest, read_manifest, write_manifest


def relocate_index(
    index: str | Path,
    *,
    model: str | Path | None = None,
    models: Sequence[str | Path] = (),
    adapter_base: str | Path | None = None,
    dataset: str | Path | None = None,
    optimizer_state: str | Path | None = None,
    reference_model: str | Path | None = None,
) -> Manifest:
    """Records new paths in the manifest of the index in the directory `index`.

    A model at its new place is loaded once and compared with the one that the index was built from, file by file.
    Then the manifest is replaced in one step. The generation stays, because the rows do, and readers that have the
    index open are not disturbed.

    Args:
        index: The directory of the index.
        model: The directory of the model, or of the adapters, that the index was built from.
        models: The directories of all its checkpoints, in their order, where it was built from several.
        adapter_base: The directory of the model that the adapters belong to, if it is not where they say.
        dataset: The file or directory of the dataset. It is recorded only: an index has a copy of its documents.
        optimizer_state: The optimizer's checkpoint that the build took moments from, which an append reads again.
        reference_model: The directory of the reference model of preference pairs, which an append asks again.

    Returns:
        The new manifest.

    Raises:
        InvalidInput: No new path is given, or one that is wrong for this index.
        ModelNotFound: The model is not there.
        DatasetNotFound: The dataset is not there.
        IndexCorrupt: A model is another one; nothing is changed.
        IndexNotFound: There is no index in the directory.
        IndexBusy: Another process is writing to the index.
    """
    root = Path(index)
    read_manifest(root)  # raises where there is no index, whose directory could then not be locked
    with index_write_lock(root):
        old = read_manifest(root)
        changes: dict[str, Any] = {}
        if model is not None or models:
            changes |= _relocate_models(old, model, models)
        if dataset is not None:
            changes["dataset"] = _relocate_dataset(old, dataset)
        if optimizer_state is not None:
            changes["gradients"] = _relocate_checkpoint(old, optimizer_state)
        if reference_model is not None:
            changes |= _relocate_reference(root, old, reference_model)
        if not changes and adapter_base is None:
            raise InvalidInput(
                "expected a new path of the model, its adapters' base, the dataset, the optimizer's checkpoint or the "
                "reference model"
            )
        spec = old.spec.model_copy(update=changes)
        if adapter_base is not None:
            _require_adapters(old, spec.model)
        updated: dict[str, Any] = {"spec": spec, "fingerprint": spec.fingerprint()}
        if model is not None or models:
            updated |= {"model_revision": None, "checkpoint_revisions": (None,) * len(models)}
        if adapter_base is not None:
            updated["adapter_base"] = _require_directory(adapter_base)
        new = old.model_copy(update=updated)
        if model is not None or models or adapter_base is not None:
            loaded = load_index_model(root, new, _load_on_cpu)
            if adapter_base is not None and loaded.adapter_base is None:
                raise InvalidInput(f"the model {new.spec.model} has no adapters; expected no adapter_base")
            new = new.model_copy(
                update={
                    "model_revision": loaded.revision,
                    "checkpoint_revisions": loaded.checkpoint_revisions,
                    "adapter_base": loaded.adapter_base,
                }
            )
        write_manifest(root, new)
    return new


def _relocate_models(
    manifest: Manifest, model: str | Path | None, models: Sequence[str | Path]
) -> dict[str, Any]:
    """Returns the fields of the spec that name its model, or its checkpoints, at their new places."""
    count = len(manifest.spec.models)
    if len(models) != count or (model is not None and count):
        expected = (
            f"the {count} directories of its checkpoints as models" if count else "one directory as model"
        )
        raise InvalidInput(
            f"the index was built from {count or 'no'} checkpoints; expected {expected}, got {len(models)} models"
            + (" and a model" if model is not None else "")
        )
    if model is not None:
        return {"model": _require_directory(model)}
    located = tuple(map(_require_directory, models))
    return {"models": located, "model": located[-1], "revision": None}


def _relocate_reference(root: Path, manifest: Manifest, path: str | Path) -> dict[str, Any]:
    """Returns the fields of the spec that name the reference model of preference pairs at its new place."""
    if manifest.spec.reference_model is None:
        raise InvalidInput("the index was built without a reference model; expected no reference_model")
    located = _require_directory(path)
    if _load_on_cpu(located, None, manifest.spec.dtype).sha256 != manifest.reference_sha256:
        raise IndexCorrupt(
            f"the model in {path} is not the reference model that the index {root.name} was built with: its files "
            "differ; name the directory that the reference model is in now"
        )
    return {"reference_model": located, "reference_revision": None}


def _require_adapters(manifest: Manifest, model: str) -> None:
    """Raises `InvalidInput` where the model of the index is there and has no adapters."""
    directory = Path(absolute_path(model))
    if manifest.adapter_base is None and directory.is_dir() and read_adapter_base(directory) is None:
        raise InvalidInput(f"the model {model} has no adapters; expected no adapter_base")


def _load_on_cpu(name: str, revision: str | None, dtype: str, **options: Any) -> Any:
    options.pop("device_map", None)
    return load_model(name, revision, dtype, "cpu", **options)


def _require_directory(path: str | Path) -> str:
    """Returns the absolute path of a model. Raises `ModelNotFound` where there is no directory."""
    located = absolute_path(str(path))
    if not os.path.isdir(located):
        raise ModelNotFound(f"no model directory at {path}; expected the directory that the model is in now")
    return located


def _relocate_dataset(manifest: Manifest, path: str | Path) -> Any:
    """Returns the dataset of the index with another path."""
    dataset = manifest.spec.dataset
    if dataset is None:
        raise InvalidInput("the documents of the index were given in the request; expected no dataset")
    located = absolute_path(str(path))
    if not os.path.exists(located) and not any(sign in located for sign in "*?["):
        raise DatasetNotFound(f"no dataset at {path}: no such file or directory")
    return dataset.model_copy(update={"path": located})


def _relocate_checkpoint(manifest: Manifest, path: str | Path) -> Any:
    """Returns the settings of the gradients with another path of the optimizer's checkpoint."""
    gradients = manifest.spec.gradients
    if gradients.optimizer_state is None:
        raise InvalidInput(
            "the index was built without an optimizer's checkpoint; expected no optimizer_state"
        )
    located = absolute_path(str(path))
    if not os.path.exists(located):
        raise InvalidInput(f"no optimizer's checkpoint at {path}: no such file or directory")
    return gradients.model_copy(update={"optimizer_state": located})
