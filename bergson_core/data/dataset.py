"""Opens datasets: files, `save_to_disk` directories and hub datasets.

Files are read by `data/files`, which keeps their words; the `datasets` library makes dates of texts. Nothing in a
dataset is run: the library has no loading scripts any more, and only files of known types are opened.
"""

import json
import os
import pkgutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final, cast

import pyarrow as pa
from datasets import Dataset, DatasetDict, IterableDataset, load_from_disk, packaged_modules
from datasets.exceptions import DatasetGenerationError
from datasets.table import CastError, InMemoryTable

from bergson_core.data.files.paths import EXPECTED_SUFFIXES, SAVED_DATASET_FILES, has_file_suffix
from bergson_core.data.files.reader import FileReader, require_no_subset
from bergson_core.data.hub import load_hub_dataset
from bergson_core.errors import DatasetNotFound, InvalidInput
from bergson_core.schemas.source import DatasetSpec
from bergson_core.utils.disk_errors import raise_if_disk_full

FORMAT_NAMES: Final = frozenset(module.name for module in pkgutil.iter_modules(packaged_modules.__path__))
"""Names that the datasets library takes for a file format where a hub id is expected, such as `csv`."""
_TYPE_ADVICE: Final = (
    "; the first rows decide what columns hold: expected all rows to be alike, or parquet, which states it"
)


def empty_dataset_error(name: str) -> InvalidInput:
    """Returns the error to raise for a dataset without rows."""
    return InvalidInput(f"{name} is empty; expected at least one document")


def load_dataset_spec(
    spec: DatasetSpec, columns: Sequence[str] | None = None, optional: Sequence[str] = ()
) -> Dataset:
    """Opens a dataset of queries: files are read into memory, everything else is memory-mapped if possible.

    Args:
        spec: The dataset.
        columns: The columns to read from files. By default all of them; then each has to hold values of one type.
        optional: Further columns to read, where the files have them.

    Raises:
        DatasetNotFound: The dataset does not exist or cannot be read; the message says what was expected.
        ColumnNotFound: The files lack one of `columns`.
        InvalidInput: A file is empty, or a column has values of several types.
    """
    with translate_dataset_errors(spec):
        if (reader := FileReader.open(spec)) is None:
            return cast(Dataset, open_saved_or_hub_dataset(spec, streaming=False))
        table = reader.read_table(columns, optional)
        if len(table) == 0:
            raise empty_dataset_error(spec.path)
        return dataset_in_memory(table)


def dataset_in_memory(table: pa.Table) -> Dataset:
    """Returns a table as a dataset, without a copy."""
    return Dataset(InMemoryTable(table))


@contextmanager
def translate_dataset_errors(spec: DatasetSpec) -> Iterator[None]:
    """Turns an error of the datasets library in the block into a `DatasetNotFound` that names the dataset."""
    try:
        yield
    except InvalidInput:
        raise
    except (
        OSError,
        TypeError,
        LookupError,
        ValueError,
        RuntimeError,
        ImportError,  # by httpx, which lacks the package for a SOCKS proxy
        DatasetGenerationError,
    ) as error:
        reason = error.__cause__ or error
        raise_if_disk_full(cast(Exception, reason))
        advice = _TYPE_ADVICE if isinstance(reason, TypeError | CastError) else ""
        raise DatasetNotFound(
            f"dataset {spec.path!r} (split {spec.split!r}) cannot be read: {reason}{advice}"
        ) from error


def open_saved_or_hub_dataset(spec: DatasetSpec, *, streaming: bool) -> Dataset | IterableDataset:
    """Maps a `save_to_disk` directory, or opens a hub dataset, as a stream if `streaming` is set.

    Raises:
        DatasetNotFound: There is no such dataset.
        InvalidInput: The spec has a field that a dataset of this kind does not have.
    """
    path = Path(spec.path).expanduser()
    if spec.text_documents != "auto":
        raise InvalidInput(f"text_documents is for .txt files; {spec.path} names no .txt file")
    if os.path.isdir(path):
        require_no_subset(spec)
        return _open_directory(path, spec)
    if "://" in spec.path:
        raise DatasetNotFound(f"{spec.path} is a URL; expected a hub id, a directory or a file")
    if path.is_absolute() or spec.path.startswith((".", "~")) or has_file_suffix(spec.path):
        raise DatasetNotFound(f"no dataset at {spec.path}: no such file or directory")
    if spec.path in FORMAT_NAMES:  # The library would read the files of the working directory.
        raise DatasetNotFound(
            f"{spec.path!r} is the name of a file format; expected a hub id, a directory or a file"
        )
    return load_hub_dataset(spec, streaming)


def _open_directory(path: Path, spec: DatasetSpec) -> Dataset:
    if not any((path / name).is_file() for name in SAVED_DATASET_FILES):
        raise DatasetNotFound(
            f"{path} has no files of a known type and was not made by save_to_disk; expected {EXPECTED_SUFFIXES}"
        )
    _require_own_files(path)
    loaded = load_from_disk(str(path))
    if isinstance(loaded, DatasetDict):
        if spec.split not in loaded:
            raise DatasetNotFound(f"{path} has no split {spec.split!r}; it has {', '.join(map(str, loaded))}")
        return loaded[spec.split]
    if spec.split != "train":
        raise DatasetNotFound(f"{path} has only the split 'train', got {spec.split!r}")
    return loaded


def _require_own_files(directory: Path) -> None:
    """Raises `DatasetNotFound` if a `save_to_disk` directory names splits or files outside itself."""
    splits = directory / "dataset_dict.json"
    names = json.loads(splits.read_bytes())["splits"] if splits.is_file() else []
    for state in (directory / "state.json", *directory.glob("*/state.json")):
        if state.is_file():
            names += [file["filename"] for file in json.loads(state.read_bytes())["_data_files"]]
    if outside := [name for name in names if name == ".." or Path(name).name != name]:
        raise DatasetNotFound(f"{directory} names {outside[0]!r}; expected only files in its own directory")
