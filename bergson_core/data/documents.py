"""Documents: a dataset read as records, and tokenised chunk by chunk."""

import json
import math
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np
from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from bergson_core.data.batching import Tokens, tokenize, with_loss_weight
from bergson_core.data.chat_template import require_messages, tokenize_chats
from bergson_core.data.dataset import empty_dataset_error, load_dataset_spec
from bergson_core.data.token_columns import read_token_rows
from bergson_core.data.token_limits import NO_LIMITS, TokenLimits
from bergson_core.errors import ColumnNotFound, InvalidInput
from bergson_core.schemas.build import BuildSpec, ColumnsSpec, Loss
from bergson_core.schemas.record import Messages, Record

READ_CHUNK_SIZE = 1024
"""Documents that are read from Arrow at a time."""
_TOKENS_ADVICE = ". A build reads text; tokens (input_ids) are read by collect_gradients and by IndexCallback"
_UNUSABLE_IDS = {"", ".", ".."}
"""Ids that cannot be a part of a URL's path."""


@dataclass(frozen=True)
class Documents:
    """A dataset seen as records. Taking a part of it is cheap at any size.

    Attributes:
        dataset: The dataset, with the columns that `columns` names.
        columns: The columns and what they hold.
        name: Name of the dataset, for messages.
        first_number: Id of the first document if there is no id column; the others count on from it.
    """

    dataset: Dataset
    columns: ColumnsSpec
    name: str
    first_number: int = 0

    def __len__(self) -> int:
        return len(self.dataset)

    def row(self, index: int) -> int:
        """Returns the number of a document's row in the dataset."""
        return index

    def read_ids(self, indices: Sequence[int]) -> list[str]:
        """Reads the ids of documents, and nothing else of them."""
        if self.columns.id is None:
            return [str(self.first_number + index) for index in indices]
        values = self.dataset.select_columns(self.columns.id)[_as_slice(indices)]
        return [str(value) for value in values[self.columns.id]]

    def read_whole_ids(self, indices: Sequence[int]) -> list[str]:
        """Reads the ids of documents; for chunks, that of the document which they are a part of."""
        return self.read_ids(indices)

    def read(self, indices: Sequence[int]) -> list[Record]:
        """Reads documents.

        Args:
            indices: Positions of the documents in the dataset.

        Returns:
            A record for each position.

        Raises:
            InvalidInput: A value is no text, no chat or no finite weight.
        """
        values = self.dataset[_as_slice(indices)]
        columns, missing = self.columns, [None] * len(indices)
        chats = missing if columns.messages is None else self._chats(values, columns.messages, indices)
        if columns.messages is None:
            prompts = self._texts(values, columns.prompt, indices)
        else:
            prompts = [json.dumps(chat, ensure_ascii=False, default=str) for chat in chats]
        completions = (
            missing if columns.completion is None else self._texts(values, columns.completion, indices)
        )
        weights = (
            [1.0] * len(indices) if columns.weight is None else self._weights(values, columns.weight, indices)
        )
        if columns.id is None:
            ids = [str(self.first_number + index) for index in indices]
        else:
            ids = [str(value) for value in values[columns.id]]
        metadata = [
            {name: values[name][position] for name in columns.metadata} for position in range(len(indices))
        ]
        rows = zip(ids, prompts, completions, metadata, chats, weights, strict=True)
        return [Record(*row) for row in rows]

    def iter_chunks(self) -> Iterator[list[Record]]:
        """Yields all documents in order, `READ_CHUNK_SIZE` at a time."""
        for start in range(0, len(self), READ_CHUNK_SIZE):
            yield self.read(range(start, min(start + READ_CHUNK_SIZE, len(self))))

    def iter_ids(self) -> Iterator[list[str]]:
        """Yields the ids of all documents in order, `READ_CHUNK_SIZE` at a time."""
        for start in range(0, len(self), READ_CHUNK_SIZE):
            yield self.read_ids(range(start, min(start + READ_CHUNK_SIZE, len(self))))

    def require_valid_ids(self) -> None:
        """Checks the id column, with 8 bytes of memory for each document.

        Raises:
            InvalidInput: An id occurs more than once, or cannot be a part of a URL.
        """
        if self.columns.id is None:
            return
        hashes = array("q")
        for ids in self.iter_ids():
            hashes.extend(map(hash, ids))
            if unusable := _UNUSABLE_IDS.intersection(ids):
                raise InvalidInput(
                    f"{self.name}: the id {unusable.pop()!r} in column {self.columns.id!r} cannot stand in a URL; "
                    "expected another one"
                )
        ordered = np.sort(np.frombuffer(hashes, dtype=np.int64))
        repeated = set(ordered[1:][ordered[1:] == ordered[:-1]].tolist())
        if not repeated:
            return
        seen = set()  # Different ids may have the same hash.
        for document_id in chain.from_iterable(self.iter_ids()):
            if document_id in seen:
                raise InvalidInput(
                    f"{self.name}: the id {document_id!r} in column {self.columns.id!r} stands more than once; "
                    "ids have to be unique"
                )
            if hash(document_id) in repeated:
                seen.add(document_id)

    def _texts(self, values: dict[str, Any], column: str, indices: Sequence[int]) -> list[str]:
        for index, value in zip(indices, values[column], strict=True):
            if not isinstance(value, str):
                raise InvalidInput(
                    f"{self._describe(index, column)} is {type(value).__name__}, expected text"
                )
        return list(values[column])

    def _chats(self, values: dict[str, Any], column: str, indices: Sequence[int]) -> list[Messages]:
        return [
            require_messages(value, self._describe(index, column))
            for index, value in zip(indices, values[column], strict=True)
        ]

    def _weights(self, values: dict[str, Any], column: str, indices: Sequence[int]) -> list[float]:
        return [
            _read_weight(value, self._describe(index, column))
            for index, value in zip(indices, values[column], strict=True)
        ]

    def _describe(self, index: int, column: str) -> str:
        return f"{self.name}: row {index} of column {column!r}"


def load_documents(spec: BuildSpec) -> Documents:
    """Opens the documents that a build reads.

    Raises:
        DatasetNotFound: The dataset does not exist or cannot be read.
        ColumnNotFound: The dataset lacks a column that the spec names.
        InvalidInput: The dataset is empty, or a column holds images, sounds or other files.
    """
    if spec.dataset is not None:
        name, dataset = spec.dataset.path, load_dataset_spec(spec.dataset)
    else:
        name, dataset = "documents", Dataset.from_list([dict(row) for row in spec.documents or ()])
    return documents_from_dataset(dataset, spec.columns, name)


def documents_from_dataset(dataset: Dataset, columns: ColumnsSpec, name: str = "dataset") -> Documents:
    """Returns the documents of a dataset in memory or on disk.

    Args:
        dataset: The dataset.
        columns: The columns to read and what they hold.
        name: Name of the dataset, for messages.

    Raises:
        ColumnNotFound: A column is missing.
        InvalidInput: The dataset is empty, or a column holds images, sounds or other files.
    """
    if len(dataset) == 0:
        raise empty_dataset_error(name)
    names = require_columns(columns, dataset.column_names, name)
    for column in names:
        if _opens_files(feature := dataset.features[column]):
            raise InvalidInput(
                f"{name}: column {column!r} holds {feature}; expected text, numbers, lists or objects"
            )
    return Documents(dataset.select_columns(names), columns, name)


def _opens_files(feature: Any) -> bool:
    """Returns whether reading a value of this type may open a path or URL in it, as it does for images and sounds."""
    if isinstance(feature, dict):
        return any(map(_opens_files, feature.values()))
    if isinstance(feature, list | tuple):
        return any(map(_opens_files, feature))
    if hasattr(feature, "feature"):
        return _opens_files(feature.feature)
    return hasattr(feature, "decode_example") and type(feature).__name__ != "Json"


def require_columns(columns: ColumnsSpec, present: Sequence[str], name: str) -> list[str]:
    """Returns the names of the columns that documents are made of.

    Args:
        columns: The columns to read and what they hold.
        present: Names of the columns that the dataset has.
        name: Name of the dataset, for messages.

    Raises:
        ColumnNotFound: A column is not present.
    """
    prompt = columns.prompt if columns.messages is None else columns.messages
    named = [prompt, columns.completion, columns.id, columns.weight, *columns.metadata]
    required = list(dict.fromkeys(filter(None, named)))
    for column in required:
        if column not in present:
            advice = _TOKENS_ADVICE * ("input_ids" in present)
            raise ColumnNotFound(f"{name} has no column {column!r}; it has {', '.join(present)}{advice}")
    return required


def tokenize_records(
    tokenizer: PreTrainedTokenizerBase, records: Sequence[Record], loss: Loss = "sum"
) -> list[Tokens]:
    """Tokenises documents that all have messages, or all have completions, or all have neither.

    Args:
        tokenizer: Tokenizer of the model.
        records: The documents.
        loss: Whether a document's loss is the sum over its labelled tokens or their mean.
    """
    chats = [record.messages for record in records if record.messages is not None]
    completions = [record.completion for record in records if record.completion is not None]
    if chats:
        tokenized = tokenize_chats(tokenizer, chats)
    else:
        tokenized = tokenize(tokenizer, [record.prompt for record in records], completions or None)
    return [
        with_loss_weight(tokens, loss, record.weight)
        for tokens, record in zip(tokenized, records, strict=True)
    ]


def iter_token_chunks(
    tokenizer: PreTrainedTokenizerBase | None,
    dataset: Dataset,
    columns: ColumnsSpec,
    limits: TokenLimits = NO_LIMITS,
    loss: Loss = "sum",
    numbers: Sequence[int] | None = None,
) -> Iterator[list[Tokens]]:
    """Yields the tokens of documents of a dataset in order, `READ_CHUNK_SIZE` documents at a time.

    Args:
        tokenizer: Tokenizer of the model, or None to take the tokens from the column `input_ids` and those beside it
            (`data/token_columns.py`). Without labels or a mask all tokens but the first are labelled.
        dataset: The dataset.
        columns: The columns to read and what they hold; without a tokenizer, only that of the weights.
        limits: Which tokens the model takes, and how many.
        loss: Whether a document's loss is the sum over its labelled tokens or their mean.
        numbers: Numbers of the rows to read; by default all.

    Raises:
        TooLong: A document has too many tokens.
        ColumnNotFound: A column is missing.
        InvalidInput: The dataset is empty, a value cannot be read, or a column says something of the tokens that cannot
            be honoured.
    """
    if tokenizer is None and "input_ids" not in dataset.column_names:
        raise ColumnNotFound("expected a tokenizer, or a column 'input_ids' that holds tokens")
    documents = documents_from_dataset(dataset, columns) if tokenizer is not None else None
    rows = range(len(dataset)) if numbers is None else numbers
    for start in range(0, len(rows), READ_CHUNK_SIZE):
        indices = rows[start : start + READ_CHUNK_SIZE]
        if documents is None or tokenizer is None:
            values = dataset[_as_slice(indices)]
            weights = _read_weights(values, columns.weight, indices)
            tokenized = read_token_rows(values, indices)
            chunk = [
                with_loss_weight(tokens, loss, weight)
                for tokens, weight in zip(tokenized, weights, strict=True)
            ]
        else:
            chunk = tokenize_records(tokenizer, documents.read(indices), loss)
        for index, tokens in zip(indices, chunk, strict=True):
            limits.require(tokens, f"row {index}")
        yield chunk


def _as_slice(indices: Sequence[int]) -> slice | list[int]:
    """Returns what a dataset is indexed with to read these rows: a slice is faster than a list."""
    return slice(indices.start, indices.stop) if isinstance(indices, range) else list(indices)


def _read_weights(values: dict[str, Any], column: str | None, indices: Sequence[int]) -> list[float]:
    """Returns the weights of the documents of a tokenised dataset: 1 without a column that has them."""
    if column is None:
        return [1.0] * len(indices)
    if column not in values:
        raise ColumnNotFound(f"the dataset has no column {column!r}; it has {', '.join(values)}")
    return [
        _read_weight(getattr(value, "item", lambda value=value: value)(), f"row {row} of column {column!r}")
        for row, value in zip(indices, values[column], strict=True)
    ]


def _read_weight(value: Any, what: str) -> float:
    """Returns the weight of a document. Raises `InvalidInput` if it is no finite number."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise InvalidInput(f"{what} is {value!r}, expected a finite number")
    return float(value)
