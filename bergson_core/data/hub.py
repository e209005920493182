"""Loads datasets of the Hugging Face hub, and opens files of their own repository only.

The README of a repository may name any files as its data, and the datasets library would open them: files of this
machine, of private repositories that this machine has a token for, or behind any URL. The library passes each such name
to one function before it looks anything up, and that function is guarded here.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from threading import Lock
from typing import Any, Final
from urllib.parse import unquote

from datasets import Dataset, IterableDataset, config, data_files, load_dataset

from bergson_core.errors import DatasetNotFound
from bergson_core.schemas.source import DatasetSpec

LOADING_LOCK: Final = Lock()
"""Held while any dataset is loaded, because `only_repository_files` changes the library for all threads."""


def load_hub_dataset(spec: DatasetSpec, streaming: bool) -> Dataset | IterableDataset:
    """Loads a split of a hub dataset.

    Raises:
        DatasetNotFound: The repository names files elsewhere as its data.
    """
    with LOADING_LOCK, only_repository_files(spec.path):
        # The latest revision, as everywhere on the hub.
        return load_dataset(  # nosec B615
            spec.path, name=spec.subset, split=spec.split, streaming=streaming
        )


@contextmanager
def only_repository_files(repository: str) -> Iterator[None]:
    """Lets the datasets library find files of this repository only, as long as the context is open.

    The caller holds `LOADING_LOCK`. The library offers no setting for this, so its function
    `datasets.data_files.resolve_pattern` is replaced and put back.
    """
    resolve_pattern = data_files.resolve_pattern
    prefixes = (f"hf://datasets/{repository}@", f"{config.HF_ENDPOINT}/datasets/{repository}/resolve/")

    def resolve_repository_pattern(pattern: str, base_path: str, *args: Any, **options: Any) -> list[str]:
        is_relative = data_files.is_relative_path(pattern)
        location = data_files.xjoin(base_path, pattern) if is_relative else pattern
        if not location.startswith(prefixes) or ".." in unquote(location).split("/") or "::" in location:
            raise DatasetNotFound(
                f"dataset {repository!r} names {location!r} as its data; expected only files in its own directory"
            )
        return resolve_pattern(pattern, base_path, *args, **options)

    data_files.resolve_pattern = resolve_repository_pattern
    try:
        yield
    finally:
        data_files.resolve_pattern = resolve_pattern
