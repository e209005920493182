"""Where training samples come from: hub datasets, saved datasets and files, read through Arrow by batches.

Nothing from a dataset is run: the `datasets` library has no loading scripts any more, and only these file types
are opened.
"""

import json
import math
from array import array
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
from datasets import Dataset, DatasetDict, IterableDataset, load_dataset, load_from_disk
from datasets.exceptions import DatasetGenerationError
from datasets.packaged_modules import _PACKAGED_DATASETS_MODULES
from datasets.table import CastError
from datasets.utils.extract import Extractor
from transformers import PreTrainedTokenizerBase

from bergson_core.data.batching import Tokens, require_length, tokenize
from bergson_core.data.chat_template import check_messages, tokenize_chats
from bergson_core.data.hub import LOADING_LOCK, load_hub_dataset
from bergson_core.data.parquet_guard import AT_ONCE, require_plain_size
from bergson_core.errors import ColumnNotFound, DatasetNotFound, InvalidInput
from bergson_core.schemas.build import BuildSpec, ColumnsSpec, DatasetSpec, Loss
from bergson_core.schemas.record import Messages, Record

_BUILDERS = {".jsonl": "json", ".json": "json", ".csv": "csv", ".parquet": "parquet"}
_TYPES = (
    "; the first rows decide what columns hold: expected all rows to be alike, or parquet, which states it"
)
_IGNORED = -100
READ_AT_ONCE = 1024
"""Documents read from Arrow in one go."""


@dataclass(frozen=True)
class Documents:
    """A dataset seen as records; ids are numbers from `first_number` by default. Slices are cheap at any size."""

    dataset: Dataset
    columns: ColumnsSpec
    name: str
    first_number: int = 0

    def __len__(self) -> int:
        return len(self.dataset)

    def read(self, numbers: range | Sequence[int]) -> list[Record]:
        """The records of these rows. Raises `InvalidInput` for a row that is not text, a chat or a finite weight."""
        index = slice(numbers.start, numbers.stop) if isinstance(numbers, range) else list(numbers)
        values = self.dataset[index]
        columns = self.columns
        completions: Sequence[str | None] = [None] * len(numbers)
        chats: Sequence[Messages | None] = completions
        if columns.messages is not None:
            chats = [
                check_messages(value, self._row(number, columns.messages))
                for number, value in zip(numbers, values[columns.messages], strict=True)
            ]
            prompts = [json.dumps(chat, ensure_ascii=False, default=str) for chat in chats]
        else:
            prompts = self._texts(values[columns.prompt], columns.prompt, numbers)
        if columns.completion is not None:
            completions = self._texts(values[columns.completion], columns.completion, numbers)
        weights: Sequence[float] = [1.0] * len(numbers)
        if columns.weight is not None:
            weights = self._weights(values[columns.weight], columns.weight, numbers)
        if columns.id is None:
            ids = [str(self.first_number + number) for number in numbers]
        else:
            ids = [str(value) for value in values[columns.id]]
        metadata = [
            dict(zip(columns.metadata, row, strict=True))
            for row in zip(*(values[name] for name in columns.metadata), strict=True)
        ] or [{} for _ in prompts]
        rows = zip(ids, prompts, completions, metadata, chats, weights, strict=True)
        return [Record(*row) for row in rows]

    def chunks(self) -> Iterator[list[Record]]:
        """All records, `READ_AT_ONCE` at a time."""
        for start in range(0, len(self), READ_AT_ONCE):
            yield self.read(range(start, min(start + READ_AT_ONCE, len(self))))

    def check_ids(self) -> None:
        """Raises `InvalidInput` naming an id that stands twice or that no URL can hold. Takes 8 bytes a document."""
        if self.columns.id is None:
            return
        hashes = array("q")
        for chunk in self.chunks():
            hashes.extend(hash(record.id) for record in chunk)
            if wrong := {".", "..", ""}.intersection(record.id for record in chunk):
                raise InvalidInput(
                    f"{self.name}: the id {wrong.pop()!r} in column {self.columns.id!r} cannot stand in a URL; "
                    "expected another one"
                )
        ordered = np.sort(np.frombuffer(hashes, dtype=np.int64))
        if not (repeated := set(ordered[1:][ordered[1:] == ordered[:-1]].tolist())):
            return
        seen = set()
        for record in (record for chunk in self.chunks() for record in chunk if hash(record.id) in repeated):
            if record.id in seen:
                raise InvalidInput(
                    f"{self.name}: the id {record.id!r} in column {self.columns.id!r} stands more than once; "
                    "ids have to be unique"
                )
            seen.add(record.id)

    def _texts(self, values: Sequence[Any], column: str, numbers: Sequence[int]) -> list[str]:
        for number, value in zip(numbers, values, strict=True):
            if not isinstance(value, str):
                raise InvalidInput(f"{self._row(number, column)} is {type(value).__name__}, expected text")
        return list(values)

    def _weights(self, values: Sequence[Any], column: str, numbers: Sequence[int]) -> list[float]:
        for number, value in zip(numbers, values, strict=True):
            if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
                raise InvalidInput(f"{self._row(number, column)} is {value!r}, expected a finite number")
        return [float(value) for value in values]

    def _row(self, number: int, column: str) -> str:
        return f"{self.name}: row {number} of column {column!r}"


def tokenize_records(
    tokenizer: PreTrainedTokenizerBase, records: Sequence[Record], loss: Loss = "sum"
) -> list[Tokens]:
    """Tokens of records that all have messages, or all have completions, or all have neither."""
    chats = [record.messages for record in records if record.messages is not None]
    completions = [record.completion for record in records if record.completion is not None]
    if chats:
        found = tokenize_chats(tokenizer, chats)
    else:
        found = tokenize(tokenizer, [record.prompt for record in records], completions or None)
    return [
        with_loss_weight(tokens, loss, record.weight) for tokens, record in zip(found, records, strict=True)
    ]


def with_loss_weight(tokens: Tokens, loss: Loss, weight: float = 1.0) -> Tokens:
    """`tokens` whose loss is `weight` times the sum over labelled tokens, or times their mean."""
    return replace(tokens, weight=weight / max(1, tokens.labelled) if loss == "mean" else weight)


def iter_token_chunks(
    tokenizer: PreTrainedTokenizerBase | None,
    dataset: Dataset,
    columns: ColumnsSpec,
    limit: int | None,
    loss: Loss = "sum",
) -> Iterator[list[Tokens]]:
    """Tokens of `READ_AT_ONCE` documents at a time; without `tokenizer`, those in the column `input_ids`.

    Labelled of these are all but the first, or those whose entry in a column `labels` is not -100.
    Raises `TooLong` for a document of more than `limit` tokens.
    """
    if tokenizer is None and "input_ids" not in dataset.column_names:
        raise ColumnNotFound("expected a tokenizer, or a column 'input_ids' that holds tokens")
    documents = documents_from_dataset(dataset, columns) if tokenizer is not None else None
    for start in range(0, len(dataset), READ_AT_ONCE):
        numbers = range(start, min(start + READ_AT_ONCE, len(dataset)))
        if documents is None or tokenizer is None:
            chunk = [
                with_loss_weight(tokens, loss) for tokens in _given_tokens(dataset[start : numbers.stop])
            ]
        else:
            chunk = tokenize_records(tokenizer, documents.read(numbers), loss)
        for number, tokens in zip(numbers, chunk, strict=True):
            require_length(tokens, limit, f"row {number}")
        yield chunk


def _given_tokens(values: dict[str, Sequence[Any]]) -> Iterator[Tokens]:
    all_ids = values["input_ids"]
    for ids, labels in zip(all_ids, values.get("labels", all_ids), strict=True):
        labelled = np.asarray(labels) != _IGNORED
        labelled[:1] = False
        yield Tokens(np.asarray(ids, dtype=np.int64), labelled)


def load_documents(spec: BuildSpec) -> Documents:
    """The documents that a build reads.

    Raises `DatasetNotFound`, `ColumnNotFound`, or `InvalidInput` for an empty dataset.
    """
    if spec.dataset is not None:
        name, dataset = spec.dataset.path, load_dataset_spec(spec.dataset)
    else:
        name, dataset = "documents", Dataset.from_list([dict(row) for row in spec.documents or ()])
    return documents_from_dataset(dataset, spec.columns, name)


def documents_from_dataset(dataset: Dataset, columns: ColumnsSpec, name: str = "dataset") -> Documents:
    """A dataset in memory or on disk as documents, after checking that the columns are there."""
    if len(dataset) == 0:
        raise empty_dataset_error(name)
    wanted = required_columns(columns, dataset.column_names, name)
    for column in wanted:
        if _opens_files(kind := dataset.features[column]):
            raise InvalidInput(
                f"{name}: column {column!r} holds {kind}; expected text, numbers, lists or objects"
            )
    return Documents(dataset.select_columns(wanted), columns, name)


def _opens_files(feature: Any) -> bool:
    """Whether reading a value may open a path or a URL that stands in it, as images and sounds do; Json does not."""
    if isinstance(feature, dict):
        return any(map(_opens_files, feature.values()))
    if isinstance(feature, list | tuple):
        return any(map(_opens_files, feature))
    if hasattr(feature, "feature"):
        return _opens_files(feature.feature)
    return hasattr(feature, "decode_example") and type(feature).__name__ != "Json"


def required_columns(columns: ColumnsSpec, there: Sequence[str], name: str) -> list[str]:
    """The columns that documents are made of. Raises `ColumnNotFound` where one is not `there`."""
    prompt = columns.prompt if columns.messages is None else columns.messages
    named = [prompt, columns.completion, columns.id, columns.weight, *columns.metadata]
    wanted = list(dict.fromkeys(filter(None, named)))
    for column in wanted:
        if column not in there:
            raise ColumnNotFound(f"{name} has no column {column!r}; it has {', '.join(there)}")
    return wanted


def empty_dataset_error(name: str) -> InvalidInput:
    """What to raise for a dataset without rows."""
    return InvalidInput(f"{name} is empty; expected at least one document")


def load_dataset_spec(spec: DatasetSpec) -> Dataset:
    """Opens a file, a directory of `save_to_disk`, or a hub dataset, memory-mapped where it can be.

    Raises `DatasetNotFound` where there is nothing that can be read, saying what was expected.
    """
    with dataset_errors(spec):
        return cast(Dataset, _open(spec, streaming=False))


def open_dataset_stream(spec: DatasetSpec) -> Dataset | IterableDataset:
    """As `open_dataset`, but nothing is read yet of a file or hub dataset; a directory of `save_to_disk` is mapped."""
    with dataset_errors(spec):
        return _open(spec, streaming=True)


@contextmanager
def dataset_errors(spec: DatasetSpec) -> Iterator[None]:
    """What the datasets library raises here becomes a `DatasetNotFound` that names the dataset."""
    try:
        yield
    except InvalidInput:
        raise
    except (OSError, TypeError, LookupError, ValueError, RuntimeError, DatasetGenerationError) as error:
        reason = error.__cause__ or error
        advice = _TYPES if isinstance(reason, TypeError | CastError) else ""
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
    if path.is_absolute() or spec.path.startswith((".", "~")) or path.suffix in _BUILDERS:
        raise DatasetNotFound(f"no dataset at {spec.path}: no such file or directory")
    if spec.path in _PACKAGED_DATASETS_MODULES:  # would be read from whatever lies in the working directory
        raise DatasetNotFound(f"{spec.path!r} is a file format; expected a hub id, a directory or a file")
    return load_hub_dataset(spec, streaming)


def _open_file(path: Path, spec: DatasetSpec, streaming: bool) -> Dataset | IterableDataset:
    builder = _BUILDERS.get(path.suffix)
    if builder is None:
        raise DatasetNotFound(f"{path} is not of a known type; expected {', '.join(_BUILDERS)}")
    if path.stat().st_size == 0:
        raise empty_dataset_error(str(path))
    if any(sign in str(path) for sign in ("*", "?", "[", "::")):  # a pattern, which finds other files
        raise DatasetNotFound(f"{path}: expected a path without *, ?, [ and ::")
    if Extractor.infer_extractor_format(
        path
    ):  # would be unpacked, whatever its name: a few bytes may fill a disk
        raise DatasetNotFound(f"{path} is compressed or an archive; expected it unpacked")
    _expect_train(spec, f"the file {path}")
    options = {}
    if builder == "parquet":
        require_plain_size(path)
        options["batch_size"] = AT_ONCE
    with LOADING_LOCK:
        return load_dataset(builder, data_files=str(path), split="train", streaming=streaming, **options)


def _open_directory(path: Path, spec: DatasetSpec) -> Dataset:
    _check_names(path)
    loaded = load_from_disk(str(path))
    if isinstance(loaded, DatasetDict):
        if spec.split not in loaded:
            raise DatasetNotFound(f"{path} has no split {spec.split!r}; it has {', '.join(map(str, loaded))}")
        return loaded[spec.split]
    _expect_train(spec, f"the directory {path}")
    return loaded


def _check_names(directory: Path) -> None:
    """Raises `DatasetNotFound` where a `save_to_disk` directory names splits or files that lie elsewhere."""
    splits = directory / "dataset_dict.json"
    names = json.loads(splits.read_bytes())["splits"] if splits.is_file() else []
    for state in (directory / "state.json", *directory.glob("*/state.json")):
        if state.is_file():
            names += [one["filename"] for one in json.loads(state.read_bytes())["_data_files"]]
    if wrong := [name for name in names if name == ".." or Path(name).name != name]:
        raise DatasetNotFound(f"{directory} names {wrong[0]!r}; expected files of its own")


def _expect_train(spec: DatasetSpec, what: str) -> None:
    if spec.split != "train":
        raise DatasetNotFound(f"{what} has one split only, 'train'; {spec.split!r} was asked for")
