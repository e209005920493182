"""Loads the model that an index was built from, from where the manifest says that it is."""

import os
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

from bergson_core.errors import ModelNotFound
from bergson_core.models import loading
from bergson_core.models.checkpoints.loading import checkpoint_sources
from bergson_core.models.language_model import LanguageModel, require_same_model
from bergson_core.models.loading import LoadModel
from bergson_core.models.offloading import default_device_map
from bergson_core.storage.manifest import Manifest


def load_index_model(root: Path, manifest: Manifest, load_model: LoadModel | None = None) -> LanguageModel:
    """Loads the model of an index, which renders chats with the date of the build.

    A name that was a path at the time of the build is never looked up on the hub.

    Args:
        root: The directory of the index.
        manifest: The manifest of the index.
        load_model: Called as `load_model(name, revision, dtype)`, for adapters of a local model also with
            `adapter_base`; for an index with a device map with `device_map`; and for one of several checkpoints with
            `checkpoints`; `bergson_core.load_model` by default.

    Raises:
        ModelNotFound: The model is gone. For a local model the message says how to record where it is now.
        IndexCorrupt: The model is another one.
    """
    name = manifest.model_source
    local = {"adapter_base": manifest.adapter_base} if manifest.adapter_base else {}
    options: dict[str, Any] = dict(local)
    if manifest.spec.device_map is not None:  # unless this machine has another map
        options["device_map"] = default_device_map() or manifest.spec.device_map
    if manifest.spec.models:
        options["checkpoints"] = checkpoint_sources(manifest.spec.models, manifest.checkpoint_revisions)
    try:
        model = (load_model or loading.load_model)(name, manifest.revision, manifest.spec.dtype, **options)
    except ModelNotFound as error:
        if missing := _find_missing_directory((*manifest.spec.models, name, *local.values())):
            option = "--adapter_base"
            if missing in (name, *manifest.spec.models):
                option = "--models" if manifest.spec.models else "--model"
            raise ModelNotFound(
                f"no model directory at {missing}: the index {root.name} was built from the local path "
                f"{missing if missing in manifest.spec.models else manifest.spec.model}. If the model is elsewhere "
                f"now, record its place: bergson relocate {root.name} {option} PATH"
            ) from error
        raise
    require_same_model(root.name, manifest, model)
    return replace(model, chat_date=manifest.chat_date)


def _find_missing_directory(paths: Iterable[str]) -> str | None:
    """Returns the first absolute path that is no directory, or None."""
    return next((path for path in paths if os.path.isabs(path) and not os.path.isdir(path)), None)
