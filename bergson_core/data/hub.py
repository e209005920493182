"""Datasets of the hub: files of their own repository alone are opened.

The README of a repository may name any files as its data, and the datasets library opens them: below `/`, in private
repositories that this machine has a token for, behind any URL. All such names go through one function of the
library, before anything is looked up.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from threading import Lock
from typing import Any, Final
from unittest.mock import patch
from urllib.parse import unquote

from datasets import Dataset, IterableDataset, config, data_files, load_dataset

from bergson_core.errors import DatasetNotFound
from bergson_core.schemas.build import DatasetSpec

LOADING_LOCK: Final = Lock()
"""Held while a dataset is loaded: the library is of one mind for all threads."""


def load_hub_dataset(spec: DatasetSpec, streaming: bool) -> Dataset | IterableDataset:
    """The split of a repository's dataset. Raises `DatasetNotFound` where it names files elsewhere."""
    with LOADING_LOCK, list_repository_files(spec.path):
        return load_dataset(spec.path, name=spec.subset, split=spec.split, streaming=streaming)


@contextmanager
def list_repository_files(repository: str) -> Iterator[None]:
    """While the context is open, the datasets library finds files of this repository alone."""
    resolve = data_files.resolve_pattern
    own = (f"hf://datasets/{repository}@", f"{config.HF_ENDPOINT}/datasets/{repository}/resolve/")

    def resolve_own(pattern: str, base_path: str, *args: Any, **kwargs: Any) -> list[str]:
        relative = data_files.is_relative_path(pattern)
        whole = data_files.xjoin(base_path, pattern) if relative else pattern
        if not whole.startswith(own) or ".." in unquote(whole).split("/") or "::" in whole:
            raise DatasetNotFound(
                f"dataset {repository!r} names {whole!r} as its data; expected files of its own"
            )
        return resolve(pattern, base_path, *args, **kwargs)

    with patch.object(data_files, "resolve_pattern", resolve_own):
        yield
