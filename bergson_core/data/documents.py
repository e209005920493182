"""Documents: a dataset read as records, and tokenised chunk by chunk."""

import json
from array import array
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any, cast

import numpy as np
import pyarrow as pa
from datasets import Dataset

from bergson_core.data.column_values import (
    Describe,
    ValueKinds,
    require_chats,
    require_ids,
    require_json_values,
    require_texts,
    require_weights,
)
from bergson_core.data.dataset import (
    dataset_in_memory,
    empty_dataset_error,
    open_saved_or_hub_dataset,
    translate_dataset_errors,
)
from bergson_core.data.document_columns import REASON_COLUMN, DocumentEncoder
from bergson_core.data.files.reader import FileReader
from bergson_core.data.preference_pairs import columns_of_pairs, records_of_pairs
from bergson_core.data.row_chunks import ObjectColumns, missing_column
from bergson_core.errors import ColumnNotFound, InvalidInput
from bergson_core.schemas.build import BuildSpec
from bergson_core.schemas.record import Record
from bergson_core.schemas.source import ColumnsSpec, InlineDocument

READ_CHUNK_SIZE = 1024
"""Documents that are read from Arrow at a time."""
_TOKENS_ADVICE = ". A build reads text; tokens (input_ids) are read by collect_gradients and by IndexCallback"


@dataclass(frozen=True)
class Documents:
    """A dataset seen as records. Taking a part of it is cheap at any size.

    Attributes:
        dataset: The dataset, with the columns that `columns` names, or the table that a `DocumentEncoder` has made.
        columns: The columns and what they hold.
        name: Name of the dataset, for messages.
        first_number: Id of the first document if there is no id column; the others count on from it.
        encoded: Whether the dataset is the table of a `DocumentEncoder`, which has checked every value.
    """

    dataset: Dataset
    columns: ColumnsSpec
    name: str
    first_number: int = 0
    encoded: bool = False

    def __len__(self) -> int:
        return len(self.dataset)

    def row(self, index: int) -> int:
        """Returns the number of a document's row in the dataset."""
        return index

    def read_ids(self, indices: Sequence[int]) -> list[str]:
        """Reads the ids of documents, and nothing else of them. A bad document without an id is named by its row."""
        if self.columns.id is None:
            return [str(self.first_number + index) for index in indices]
        if not self.encoded:
            values = self.dataset.select_columns(self.columns.id)[as_slice(indices)][self.columns.id]
            return self._name_all(values, indices, self.columns.id)
        ids = self.dataset.select_columns("id")[as_slice(indices)]["id"]
        return [f"row {row}" if id is None else id for id, row in zip(ids, indices, strict=True)]

    def _name_all(self, values: Sequence[Any], indices: Sequence[int], column: str) -> list[str]:
        """Returns the ids of documents, and the number of the row for those that have none."""
        describe = self._describer(indices)
        try:
            return require_ids(values, column, describe)
        except InvalidInput:
            if len(values) == 1:
                return [f"row {indices[0]}"]
            return [
                self._name_all([value], [row], column)[0] for value, row in zip(values, indices, strict=True)
            ]

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
            InvalidInput: A value is not text, no id, no chat, no finite weight or no JSON value.
        """
        values = self.dataset[as_slice(indices)]
        columns = (_decode_columns if self.encoded else self._check_columns)(values, indices)
        ids = columns.get("id") or [str(self.first_number + index) for index in indices]
        if self.columns.chosen is not None:
            return records_of_pairs(ids, columns)
        missing = [None] * len(indices)
        chats = columns.get("messages", missing)
        rows = zip(
            ids,
            columns.get("prompt") or [json.dumps(chat, ensure_ascii=False, default=str) for chat in chats],
            columns.get("completion", missing),
            columns.get("metadata") or [{} for _ in indices],
            chats,
            columns.get("weight") or [1.0] * len(indices),
            strict=True,
        )
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
        """Checks that each id of the id column occurs once, with 8 bytes of memory for each document.

        Raises:
            InvalidInput: An id occurs more than once.
        """
        if self.columns.id is None:
            return
        hashes = array("q")
        for ids in self.iter_ids():
            hashes.extend(map(hash, ids))
        ordered = np.sort(np.frombuffer(hashes, dtype=np.int64))
        repeated = set(ordered[1:][ordered[1:] == ordered[:-1]].tolist())
        if not repeated:
            return
        seen = set()  # Different ids may have the same hash.
        for document_id in chain.from_iterable(self.iter_ids()):
            if document_id in seen:
                raise InvalidInput(
                    f"{self.name}: the id {document_id!r} in column {self.columns.id!r} occurs more than once; "
                    "ids must be unique"
                )
            if hash(document_id) in repeated:
                seen.add(document_id)

    def require_single_kinds(self) -> None:
        """Checks the metadata columns whose values may be of any type.

        Raises:
            InvalidInput: A column holds values of several types. The message names two rows.
        """
        names = [name for name in self.columns.metadata if _is_json(self.dataset.features.get(name))]
        kinds, dataset = ValueKinds(), self.dataset.select_columns(names)
        for start in range(0, len(self), READ_CHUNK_SIZE) if names else ():
            values = dataset[start : start + READ_CHUNK_SIZE]
            for name in names:
                describe = self._describer(range(start, len(self)))
                kinds.require_same(require_json_values(values[name], name, describe), name, describe)

    def _describer(self, indices: Sequence[int]) -> Describe:
        return lambda position, column: f"{self.name}: row {indices[position]} of column {column!r}"

    def _check_columns(self, values: dict[str, Any], indices: Sequence[int]) -> dict[str, list[Any]]:
        """Returns the values of each purpose, as `DocumentEncoder` names them."""
        columns, describe = self.columns, self._describer(indices)
        checked: dict[str, list[Any]] = {}
        if columns.chosen is not None:
            checked |= columns_of_pairs(values, columns, describe)
        elif columns.messages is not None:
            checked["messages"] = require_chats(values[columns.messages], columns.messages, describe)
        elif columns.prompt is not None:
            checked["prompt"] = require_texts(values[columns.prompt], columns.prompt, describe)
        if columns.completion is not None:
            checked["completion"] = require_texts(values[columns.completion], columns.completion, describe)
        if columns.id is not None:
            checked["id"] = require_ids(values[columns.id], columns.id, describe)
        if columns.weight is not None:
            checked["weight"] = require_weights(values[columns.weight], columns.weight, describe)
        if columns.metadata:
            nulls = [None] * len(indices)  # an append may lack a column
            metadata = [
                require_json_values(values.get(name, nulls), name, describe) for name in columns.metadata
            ]
            checked["metadata"] = [
                dict(zip(columns.metadata, row, strict=True)) for row in zip(*metadata, strict=True)
            ]
        return checked


def _decode_columns(values: dict[str, list[Any]], _indices: Sequence[int]) -> dict[str, list[Any]]:
    """Returns the values of each purpose from the table of a `DocumentEncoder`.

    Raises:
        InvalidInput: A document is bad, and the table has the reason in its place.
    """
    for reason in values.pop(REASON_COLUMN, ()):
        if reason is not None:
            raise InvalidInput(reason)
    json_columns = {
        name: list(map(json.loads, values[name])) for name in ("messages", "metadata") if name in values
    }
    return {**values, **json_columns}


def load_documents(spec: BuildSpec, optional: Collection[str] = ()) -> Documents:
    """Opens the documents that a build reads; those in files or in the spec itself are held in memory.

    Args:
        spec: The build.
        optional: Metadata columns that are null where no document has them.

    Raises:
        DatasetNotFound: The dataset does not exist or cannot be read.
        ColumnNotFound: The dataset lacks a column that the spec names.
        InvalidInput: The dataset is empty, or a value is not what its column should hold.
    """
    name = "documents" if spec.dataset is None else spec.dataset.path
    note_bad = spec.on_bad_document == "skip"
    if spec.dataset is None:
        batches = _encode_inline(spec.documents or (), spec.columns, note_bad, optional)
    else:
        with translate_dataset_errors(spec.dataset):
            reader = FileReader.open(spec.dataset)
            if reader is None:
                dataset = cast(Dataset, open_saved_or_hub_dataset(spec.dataset, streaming=False))
                return documents_from_dataset(dataset, spec.columns, name, optional)
            batches = list(reader.iter_documents(spec.columns, note_bad=note_bad, optional=optional))
    if not batches:
        raise empty_dataset_error(name)
    return Documents(dataset_in_memory(pa.Table.from_batches(batches)), spec.columns, name, encoded=True)


def _encode_inline(
    documents: Sequence[InlineDocument], columns: ColumnsSpec, note_bad: bool, optional: Collection[str]
) -> list[pa.RecordBatch]:
    if not documents:
        return []
    names = columns.column_names()
    objects = ObjectColumns(names, set(names) - set(columns.metadata), "documents", optional)
    chunk = objects.make_chunk(documents, "documents", 0)
    objects.require_all()
    return [DocumentEncoder(columns, note_bad=note_bad).encode(chunk)]


def documents_from_dataset(
    dataset: Dataset, columns: ColumnsSpec, name: str = "dataset", optional: Collection[str] = ()
) -> Documents:
    """Returns the documents of a dataset in memory or on disk.

    Args:
        dataset: The dataset.
        columns: The columns to read and what they hold.
        name: Name of the dataset, for messages.
        optional: Metadata columns that are null where the dataset lacks them.

    Raises:
        ColumnNotFound: A column is missing.
        InvalidInput: The dataset is empty, or a column holds images, audio or other files.
    """
    if len(dataset) == 0:
        raise empty_dataset_error(name)
    names = require_columns(columns, dataset.column_names, name, optional)
    for column in names:
        if _opens_files(feature := dataset.features[column]):
            raise InvalidInput(
                f"{name}: column {column!r} holds {feature}; expected text, numbers, lists or objects"
            )
    documents = Documents(dataset.select_columns(names), columns, name)
    documents.require_single_kinds()
    return documents


def _opens_files(feature: Any) -> bool:
    """Returns whether reading a value of this type may open a path or URL in it, as it does for images and audio."""
    if isinstance(feature, dict):
        return any(map(_opens_files, feature.values()))
    if isinstance(feature, list | tuple):
        return any(map(_opens_files, feature))
    if hasattr(feature, "feature"):
        return _opens_files(feature.feature)
    return hasattr(feature, "decode_example") and not _is_json(feature)


def _is_json(feature: Any) -> bool:
    """Returns whether a feature is that of values of any type, which older releases of the library do not have."""
    return type(feature).__name__ == "Json"


def require_columns(
    columns: ColumnsSpec, present: Sequence[str], name: str, optional: Collection[str] = ()
) -> list[str]:
    """Returns the names of the columns that documents are made of, without those that are optional and missing.

    Args:
        columns: The columns to read and what they hold.
        present: Names of the columns that the dataset has.
        name: Name of the dataset, for messages.
        optional: Columns that may be missing.

    Raises:
        ColumnNotFound: A column is not present.
    """
    required = [column for column in columns.column_names() if column in present or column not in optional]
    for column in required:
        if column not in present:
            error = missing_column(name, column, present)
            raise ColumnNotFound(f"{error}{_TOKENS_ADVICE * ('input_ids' in present)}")
    return required


def as_slice(indices: Sequence[int]) -> slice | list[int]:
    """Returns what a dataset is indexed with to read these rows: a slice is faster than a list."""
    return slice(indices.start, indices.stop) if isinstance(indices, range) else list(indices)
