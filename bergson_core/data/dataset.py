"""Opens datasets: files, `save_to_disk` directories and hub datasets.

Nothing in a dataset is run: the `datasets` library has no loading scripts any more, and only the file types below are
opened.
"""

import json
import pkgutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final, cast

from datasets import Dataset, DatasetDict, IterableDataset, load_dataset, load_from_disk, packaged_modules
from datasets.exceptions import DatasetGenerationError
from datasets.table import CastError
from datasets.utils.extract import Extractor

from bergson_core.data.hub import LOADING_LOCK, load_hub_dataset
from bergson_core.data.parquet_guard import DECODE_CHUNK_ROWS, require_bounded_size
from bergson_core.errors import DatasetNotFound, InvalidInput
from bergson_core.schemas.build import DatasetSpec

FORMAT_NAMES: Final = frozenset(module.name for module in pkgutil.iter_modules(packaged_modules.__path__))
"""Names that the datasets library takes for a file format where a hub id is expected, such as `csv`."""
_FORMATS: Final = {".jsonl": "json", ".json": "json", ".csv": "csv", ".parquet": "parquet"}
_TYPE_ADVICE: Final = (
    "; the first rows decide what columns hold: expected all rows to be alike, or parquet, which states it"
)


def empty_dataset_error(name: str) -> InvalidInput:
    """Returns the error to raise for a dataset without rows."""
    return InvalidInput(f"{name} is empty; expected at least one document")


def load_dataset_spec(spec: DatasetSpec) -> Dataset:
    """Opens a file, a `save_to_disk` directory or a hub dataset, memory-mapped if possible.

    Raises:
        DatasetNotFound: The dataset does not exist or cannot be read; the message says what was expected.
        InvalidInput: The file is empty.
    """
    with translate_dataset_errors(spec):
        return cast(Dataset, _open(spec, streaming=False))


def open_dataset_stream(spec: DatasetSpec) -> Dataset | IterableDataset:
    """Opens a file or a hub dataset as a stream, of which nothing is read yet, or maps a `save_to_disk` directory.

    Raises:
        DatasetNotFound: The dataset does not exist or cannot be read; the message says what was expected.
        InvalidInput: The file is empty.
    """
    with translate_dataset_errors(spec):
        return _open(spec, streaming=True)


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
        advice = _TYPE_ADVICE if isinstance(reason, TypeError | CastError) else ""
        raise DatasetNotFound(
            f"dataset {spec.path!r} (split {spec.split!r}) cannot be read: {reason}{advice}"
        ) from error


def _open(spec: DatasetSpec, streaming: bool) -> Dataset | IterableDataset:
    path = Path(spec.path).expanduser()
    if path.is_file():
        return _open_file(path, spec, streaming)
    if path.is_dir():
        return _open_directory(path, spec)
    if "://" in spec.path:
        raise DatasetNotFound(f"{spec.path} is a URL; expected a hub id, a directory or a file")
    if path.is_absolute() or spec.path.startswith((".", "~")) or path.suffix in _FORMATS:
        raise DatasetNotFound(f"no dataset at {spec.path}: no such file or directory")
    if spec.path in FORMAT_NAMES:  # The library would read the files of the working directory.
        raise DatasetNotFound(f"{spec.path!r} is a file format; expected a hub id, a directory or a file")
    return load_hub_dataset(spec, streaming)


def _open_file(path: Path, spec: DatasetSpec, streaming: bool) -> Dataset | IterableDataset:
    file_format = _FORMATS.get(path.suffix)
    if file_format is None:
        raise DatasetNotFound(f"{path} is not of a known type; expected {', '.join(_FORMATS)}")
    if path.stat().st_size == 0:
        raise empty_dataset_error(str(path))
    if any(
        sign in str(path) for sign in ("*", "?", "[", "::")
    ):  # The library takes it for a pattern of other files.
        raise DatasetNotFound(f"{path}: expected a path without *, ?, [ and ::")
    if Extractor.infer_extractor_format(path):
        # The library would unpack it whatever its name, and a few bytes may unpack to more than a disk holds.
        raise DatasetNotFound(f"{path} is compressed or an archive; expected it unpacked")
    _require_train_split(spec, f"the file {path}")
    options = {}
    if file_format == "parquet":
        require_bounded_size(path)
        options["batch_size"] = DECODE_CHUNK_ROWS
    with LOADING_LOCK:
        return load_dataset(file_format, data_files=str(path), split="train", streaming=streaming, **options)


def _open_directory(path: Path, spec: DatasetSpec) -> Dataset:
    _require_own_files(path)
    loaded = load_from_disk(str(path))
    if isinstance(loaded, DatasetDict):
        if spec.split not in loaded:
            raise DatasetNotFound(f"{path} has no split {spec.split!r}; it has {', '.join(map(str, loaded))}")
        return loaded[spec.split]
    _require_train_split(spec, f"the directory {path}")
    return loaded


def _require_own_files(directory: Path) -> None:
    """Raises `DatasetNotFound` if a `save_to_disk` directory names splits or files outside itself."""
    splits = directory / "dataset_dict.json"
    names = json.loads(splits.read_bytes())["splits"] if splits.is_file() else []
    for state in (directory / "state.json", *directory.glob("*/state.json")):
        if state.is_file():
            names += [file["filename"] for file in json.loads(state.read_bytes())["_data_files"]]
    if outside := [name for name in names if name == ".." or Path(name).name != name]:
        raise DatasetNotFound(f"{directory} names {outside[0]!r}; expected files of its own")


def _require_train_split(spec: DatasetSpec, what: str) -> None:
    if spec.split != "train":
        raise DatasetNotFound(f"{what} has one split only, 'train'; {spec.split!r} was asked for")
