"""The table that documents are kept in while an index is built; `column_values` says what it may hold.

The table has a column for each purpose:

    id, prompt, completion   text
    messages                 a list of messages as JSON text
    rejected                 text, only of preference pairs, whose completion is the chosen one
    is_chat                  whether prompt and completions of a pair are messages as JSON text
    reference_margin         float64, of preference pairs (`PairTexts`)
    weight                   float64
    metadata                 an object with the metadata columns as JSON text
    reason                   why the document is bad, or null; only where bad documents are to be left out

JSON text is used because an Arrow column has one type: it would add null for each key that another row has, and could
hold neither 1 beside 1.5 nor integers beyond 64 bits without loss.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Any, Final

import pyarrow as pa
from pydantic_core import PydanticSerializationError, to_json

from bergson_core.data.column_values import (
    Describe,
    ValueKinds,
    require_chats,
    require_ids,
    require_json_values,
    require_readable,
    require_texts,
    require_weights,
)
from bergson_core.data.preference_pairs import columns_of_pairs
from bergson_core.data.row_chunks import RowChunk
from bergson_core.errors import InvalidInput
from bergson_core.schemas.inline_values import SURROGATE_REASON
from bergson_core.schemas.source import ColumnsSpec

REASON_COLUMN: Final = "reason"
_MARK: Final = b"bergson documents"
"""Metadata of the schema of an encoded table."""


def is_encoded(schema: pa.Schema) -> bool:
    """Returns whether a table was made by a `DocumentEncoder`."""
    return _MARK in (schema.metadata or {})


class DocumentEncoder:
    """Checks the rows of files and turns them into batches of the table of documents.

    Args:
        columns: The columns to read and what they hold.
        note_bad: Whether a document with a wrong value gets the reason in its place, instead of raising it.
    """

    def __init__(self, columns: ColumnsSpec, *, note_bad: bool = False) -> None:
        self._columns, self._kinds, self._note_bad = columns, ValueKinds(), note_bad
        self._row = 0
        text = {"id": columns.id, "completion": columns.completion, "messages": columns.messages}
        text["prompt"] = columns.prompt if columns.messages is None else None
        text["metadata"] = "metadata" if columns.metadata else None
        if columns.chosen is not None:
            text |= dict.fromkeys(("prompt", "completion", "rejected"), "pair")
        fields = [(name, pa.string()) for name, column in text.items() if column is not None]
        fields += (
            [] if columns.chosen is None else [("is_chat", pa.bool_()), ("reference_margin", pa.float64())]
        )
        fields += [("weight", pa.float64())] if columns.weight is not None else []
        fields += [(REASON_COLUMN, pa.string())] if note_bad else []
        self.schema = pa.schema(fields, {_MARK: b"1"})

    def encode(self, chunk: RowChunk) -> pa.RecordBatch:
        """Returns the documents of some rows.

        Raises:
            InvalidInput: A value is not what its column should hold. The message names the file, the row and the
                column.
        """
        (batch,) = pa.Table.from_batches(list(self._encode_parts(chunk))).combine_chunks().to_batches()
        return batch

    def _encode_parts(self, chunk: RowChunk) -> Iterator[pa.RecordBatch]:
        """Yields the documents of some rows. If they cannot be encoded together, each half is tried by itself."""
        try:
            batch = self._encode_good(chunk)
        except InvalidInput as error:
            if len(chunk) > 1:
                middle = len(chunk) // 2
                yield from self._encode_parts(chunk.part(0, middle))
                yield from self._encode_parts(chunk.part(middle, len(chunk)))
                return
            batch = self._note(chunk, error)
        self._row += len(chunk)
        yield batch

    def _note(self, chunk: RowChunk, error: InvalidInput) -> pa.RecordBatch:
        """Returns the batch of a single bad row, or raises the error with the name of the document."""
        values: dict[str, str] = {}
        if self._columns.id is not None:
            with suppress(InvalidInput):
                require_readable(chunk.values[self._columns.id], self._columns.id, chunk.describe)
                (values["id"],) = require_ids(
                    chunk.values[self._columns.id], self._columns.id, chunk.describe
                )
        if not self._note_bad:
            name = f"document {values['id']!r} (row {self._row}): " if values else ""
            raise InvalidInput(f"{name}{error}") from error
        values[REASON_COLUMN] = str(error)
        arrays = [pa.array([values.get(field.name)], field.type) for field in self.schema]
        return pa.record_batch(arrays, self.schema)

    def _encode_good(self, chunk: RowChunk) -> pa.RecordBatch:
        for name in self._columns.column_names():
            require_readable(chunk.values[name], name, chunk.describe)
        columns, describe, arrays = self._columns, chunk.describe, dict[str, pa.Array]()
        if columns.chosen is not None:
            arrays |= self._encode_pairs(chunk)
        else:
            texts = {"prompt": columns.prompt if columns.messages is None else None}
            for name, column in (texts | {"completion": columns.completion}).items():
                if column is not None:
                    values = require_texts(chunk.values[column], column, describe)
                    arrays[name] = _to_text_array(values, column, describe)
        if columns.id is not None:
            ids = require_ids(chunk.values[columns.id], columns.id, describe)
            arrays["id"] = _to_text_array(ids, columns.id, describe)
        if columns.messages is not None:
            values = require_json_values(chunk.values[columns.messages], columns.messages, describe)
            chats = require_chats(values, columns.messages, describe)
            arrays["messages"] = _to_text_array(list(map(_dumps, chats)), columns.messages, describe)
        if columns.weight is not None:
            weights = require_weights(chunk.data[columns.weight], columns.weight, describe)
            arrays["weight"] = pa.array(weights, pa.float64())
        if columns.metadata:
            arrays["metadata"] = self._encode_metadata(chunk.data, describe)
        if self._note_bad:
            arrays[REASON_COLUMN] = pa.nulls(len(chunk), pa.string())
        return pa.record_batch([arrays[name] for name in self.schema.names], self.schema)

    def _encode_pairs(self, chunk: RowChunk) -> dict[str, pa.Array]:
        columns, describe = self._columns, chunk.describe
        logps = {name for name in (columns.ref_chosen_logps, columns.ref_rejected_logps) if name is not None}
        values = {
            name: chunk.data[name]
            if name in logps
            else require_json_values(chunk.values[name], name, describe)
            for name in (columns.prompt, columns.chosen, columns.rejected, *logps)
            if name is not None
        }
        pairs, column = columns_of_pairs(values, columns, describe), columns.chosen or ""
        return {
            name: _to_text_array(pairs[name], column, describe)
            if self.schema.field(name).type == pa.string()
            else pa.array(pairs[name], self.schema.field(name).type)
            for name in pairs
        }

    def _encode_metadata(self, data: Mapping[str, Sequence[Any]], describe: Describe) -> pa.Array:
        converted = []
        for column in self._columns.metadata:
            values = require_json_values(data[column], column, describe)
            self._kinds.require_same(values, column, describe)
            converted.append(values)
        names = self._columns.metadata
        objects = [_dumps(dict(zip(names, row, strict=True))) for row in zip(*converted, strict=True)]
        return _to_text_array(objects, ", ".join(names), describe)


def _dumps(value: Any) -> str:
    try:
        return to_json(value).decode()
    except PydanticSerializationError:  # half a surrogate pair, which `_to_text_array` refuses
        return json.dumps(value, ensure_ascii=False)


def _to_text_array(texts: Sequence[str], column: str, describe: Describe) -> pa.Array:
    try:
        return pa.array(texts, pa.string())
    except UnicodeEncodeError:
        position = next(position for position, text in enumerate(texts) if _has_lone_surrogate(text))
        raise InvalidInput(f"{describe(position, column)} {SURROGATE_REASON}") from None


def _has_lone_surrogate(text: str) -> bool:
    return any("\ud800" <= character <= "\udfff" for character in text)
