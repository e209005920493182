"""Documents: a dataset read as records, and tokenised chunk by chunk."""

import json
import math
from array import array
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import date
from typing import Any

import numpy as np
from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from bergson_core.data.batching import Tokens, require_max_tokens, tokenize, with_loss_weight
from bergson_core.data.chat_template import tokenize_chats
from bergson_core.data.dataset import empty_dataset_error, load_dataset_spec
from bergson_core.errors import ColumnNotFound, InvalidInput
from bergson_core.schemas.build import BuildSpec, ColumnsSpec, Loss
from bergson_core.schemas.record import Messages, Record, drop_nulls, require_message

READ_CHUNK_SIZE = 1024
"""Documents that are read from Arrow at a time."""
_IGNORED_LABEL = -100
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

    def read(self, indices: range | Sequence[int]) -> list[Record]:
        """Reads documents.

        Args:
            indices: Positions of the documents in the dataset.

        Returns:
            A record for each position.

        Raises:
            InvalidInput: A value is no text, no chat or no finite weight.
        """
        is_range = isinstance(indices, range)
        values = self.dataset[slice(indices.start, indices.stop) if is_range else list(indices)]
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

    def require_valid_ids(self) -> None:
        """Checks the id column, with 8 bytes of memory for each document.

        Raises:
            InvalidInput: An id occurs more than once, or cannot be a part of a URL.
        """
        if self.columns.id is None:
            return
        hashes = array("q")
        for chunk in self.iter_chunks():
            hashes.extend(hash(record.id) for record in chunk)
            if unusable := _UNUSABLE_IDS.intersection(record.id for record in chunk):
                raise InvalidInput(
                    f"{self.name}: the id {unusable.pop()!r} in column {self.columns.id!r} cannot stand in a URL; "
                    "expected another one"
                )
        ordered = np.sort(np.frombuffer(hashes, dtype=np.int64))
        repeated = set(ordered[1:][ordered[1:] == ordered[:-1]].tolist())
        if not repeated:
            return
        seen = set()  # Different ids may have the same hash.
        for record in (
            record for chunk in self.iter_chunks() for record in chunk if hash(record.id) in repeated
        ):
            if record.id in seen:
                raise InvalidInput(
                    f"{self.name}: the id {record.id!r} in column {self.columns.id!r} stands more than once; "
                    "ids have to be unique"
                )
            seen.add(record.id)

    def _texts(self, values: dict[str, Any], column: str, indices: Sequence[int]) -> list[str]:
        for index, value in zip(indices, values[column], strict=True):
            if not isinstance(value, str):
                raise InvalidInput(
                    f"{self._describe(index, column)} is {type(value).__name__}, expected text"
                )
        return list(values[column])

    def _chats(self, values: dict[str, Any], column: str, indices: Sequence[int]) -> list[Messages]:
        return [
            _read_chat(value, self._describe(index, column))
            for index, value in zip(indices, values[column], strict=True)
        ]

    def _weights(self, values: dict[str, Any], column: str, indices: Sequence[int]) -> list[float]:
        for index, value in zip(indices, values[column], strict=True):
            if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
                raise InvalidInput(f"{self._describe(index, column)} is {value!r}, expected a finite number")
        return [float(value) for value in values[column]]

    def _describe(self, index: int, column: str) -> str:
        return f"{self.name}: row {index} of column {column!r}"


def _read_chat(value: Any, what: str) -> Messages:
    """Returns the messages of a chat, which may also be given as JSON text, without fields that are null.

    Args:
        value: What a dataset holds where a chat is expected.
        what: Where the value stands, for the message.

    Raises:
        InvalidInput: It is not a list of messages that each have a role.
    """
    if isinstance(value, str):
        with suppress(ValueError):  # a text that is not JSON is no chat either
            value = json.loads(value)
    if not isinstance(value, list) or not value:
        raise InvalidInput(f"{what} is no chat; expected a list of messages, each with a role and a content")
    for number, message in enumerate(value):
        try:
            require_message(message if isinstance(message, dict) else {})
        except ValueError as error:
            raise InvalidInput(f"{what} is no chat: message {number}: {error}") from None
    return drop_nulls(value)


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
        rows = [_with_chat_as_text(row, spec.columns.messages) for row in spec.documents or ()]
        name, dataset = "documents", Dataset.from_list(rows)
    return documents_from_dataset(dataset, spec.columns, name)


def _with_chat_as_text(document: Mapping[str, Any], column: str | None) -> dict[str, Any]:
    """Returns a document with its chat as JSON text, because Arrow would give each message the fields of all others."""
    row = dict(document)
    if column is not None and isinstance(chat := row.get(column), list):
        row[column] = json.dumps(chat, ensure_ascii=False, default=str)
    return row


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
            raise ColumnNotFound(f"{name} has no column {column!r}; it has {', '.join(present)}")
    return required


def tokenize_records(
    tokenizer: PreTrainedTokenizerBase,
    records: Sequence[Record],
    loss: Loss = "sum",
    chat_date: date | None = None,
) -> list[Tokens]:
    """Tokenises documents that all have messages, or all have completions, or all have neither.

    Args:
        tokenizer: Tokenizer of the model.
        records: The documents.
        loss: Whether a document's loss is the sum over its labelled tokens or their mean.
        chat_date: The date that a chat template is told if it asks for today's; by default it is today's.
    """
    chats = [record.messages for record in records if record.messages is not None]
    completions = [record.completion for record in records if record.completion is not None]
    if chats:
        names = [f"document {record.id!r}" for record in records]
        tokenized = tokenize_chats(tokenizer, chats, chat_date, names)
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
    limit: int | None,
    loss: Loss = "sum",
    chat_date: date | None = None,
) -> Iterator[list[Tokens]]:
    """Yields the tokens of all documents of a dataset in order, `READ_CHUNK_SIZE` documents at a time.

    Args:
        tokenizer: Tokenizer of the model, or None to take the token ids from a column `input_ids`. Then all tokens but
            the first are labelled, or those whose entry in a column `labels` is not -100.
        dataset: The dataset.
        columns: The columns to read and what they hold; used with a tokenizer only.
        limit: Largest number of tokens of a document, or None for no limit.
        loss: Whether a document's loss is the sum over its labelled tokens or their mean.
        chat_date: The date that a chat template is told if it asks for today's; by default it is today's.

    Raises:
        TooLong: A document has more than `limit` tokens.
        ColumnNotFound: A column is missing.
        InvalidInput: The dataset is empty, or a value cannot be read.
    """
    if tokenizer is None and "input_ids" not in dataset.column_names:
        raise ColumnNotFound("expected a tokenizer, or a column 'input_ids' that holds tokens")
    documents = documents_from_dataset(dataset, columns) if tokenizer is not None else None
    for start in range(0, len(dataset), READ_CHUNK_SIZE):
        indices = range(start, min(start + READ_CHUNK_SIZE, len(dataset)))
        if documents is None or tokenizer is None:
            tokenized = _read_token_columns(dataset[start : indices.stop])
            chunk = [with_loss_weight(tokens, loss) for tokens in tokenized]
        else:
            chunk = tokenize_records(tokenizer, documents.read(indices), loss, chat_date)
        for index, tokens in zip(indices, chunk, strict=True):
            require_max_tokens(tokens, limit, f"row {index}")
        yield chunk


def _read_token_columns(values: dict[str, Sequence[Any]]) -> Iterator[Tokens]:
    all_ids = values["input_ids"]
    for ids, labels in zip(all_ids, values.get("labels", all_ids), strict=True):
        labelled = np.asarray(labels) != _IGNORED_LABEL
        labelled[:1] = False
        yield Tokens(np.asarray(ids, dtype=np.int64), labelled)
