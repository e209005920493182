"""A document as it is read from a dataset, before it is tokenised, and the messages of a chat."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any

from pydantic import AfterValidator, WithJsonSchema

from bergson_core.schemas.documents import Chunk
from bergson_core.schemas.preference.pair_texts import PairTexts
from bergson_core.schemas.source import ColumnsSpec
from bergson_core.schemas.validation.bounded_errors import short_repr

Messages = Sequence[dict[str, Any]]
"""One chat: messages with a role and a content, in order."""


def require_message(message: dict[str, Any]) -> dict[str, Any]:
    """Returns a message of a chat. Raises `ValueError` unless its role is text and its content can be one."""
    if not isinstance(role := message.get("role"), str) or not role:
        raise ValueError(f"expected a role such as user or assistant, got {short_repr(role)}")
    content = message.get("content")
    is_parts = isinstance(content, list) and all(isinstance(part, dict | str) for part in content)
    if not (content is None or isinstance(content, str) or is_parts):
        raise ValueError(f"expected a content that is text or a list of parts, got {short_repr(content)}")
    return message


def find_chat_problem(chat: Any) -> str | None:
    """Returns what is wrong with a chat, as the end of a sentence about it; None if nothing is.

    Args:
        chat: A list of messages, or any other value. JSON text is read by `parse_chat` before.
    """
    if not isinstance(chat, list) or not chat:
        return "is not a chat; expected a list of messages, each with a role and a content"
    for number, message in enumerate(chat):
        try:
            require_message(message if isinstance(message, dict) else {})
        except ValueError as error:
            return f"is not a chat: message {number}: {error}"
    return None


def parse_chat(value: Any) -> Any:
    """Returns the value of JSON text, None for any other text, and other values as they are."""
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except ValueError:
        return None


def drop_nulls(value: Any) -> Any:
    """Returns a JSON value without the fields that are null, at every depth; the items of lists stay.

    Arrow, in which Parquet files and datasets are read, has no objects of different fields: each object gets the fields
    of all others, as null. So a field that is null means the same as a field that is missing.
    """
    if isinstance(value, dict):
        return {name: drop_nulls(item) for name, item in value.items() if item is not None}
    return [drop_nulls(item) for item in value] if isinstance(value, list | tuple) else value


Message = Annotated[
    dict[str, Any],
    AfterValidator(require_message),
    WithJsonSchema(
        {
            "type": "object",
            "properties": {
                "role": {"type": "string", "minLength": 1},
                "content": {
                    "anyOf": [
                        {"type": "string"},
                        {"type": "array", "items": {"anyOf": [{"type": "object"}, {"type": "string"}]}},
                        {"type": "null"},
                    ]
                },
            },
            "required": ["role"],
        }
    ),
]
"""A message of a chat in a request. Besides role and content it may have whatever chat templates read, such as
`tool_calls` and `reasoning_content`."""


@dataclass(frozen=True)
class Record:
    """One training document.

    Attributes:
        id: Unique id within the index.
        prompt: The text, or the prompt if there is a completion. For a chat, its messages as JSON text.
        completion: The completion, which the loss is then taken over, or None.
        metadata: The metadata columns and their JSON values.
        messages: The messages of a chat, which are then tokenised in place of `prompt`, or None.
        weight: Number that the document's loss is multiplied by.
        chunk: What the text is a part of, where a document was cut. It is not in the `repr`, which names the content.
        pair: The texts of a preference pair, whose chosen completion is also `completion`, or None. Nor is this.
    """

    id: str
    prompt: str
    completion: str | None
    metadata: dict[str, Any]
    messages: Messages | None = None
    weight: float = 1.0
    chunk: Chunk | None = field(default=None, repr=False)
    pair: PairTexts | None = field(default=None, repr=False)


def record_of_pair(id: str, pair: PairTexts, metadata: dict[str, Any], weight: float = 1.0) -> Record:
    """Returns the document that is a preference pair."""
    return Record(id, pair.prompt, pair.chosen, metadata, None, weight, pair=pair)


def record_from_stored(row: Mapping[str, Any], columns: ColumnsSpec, weight: float = 1.0) -> Record:
    """Returns the document that an index with these columns has stored.

    Args:
        row: The document's row in a document table (`storage.document_table`), or its id, prompt, completion and what
            preference pairs have beside these. Metadata is left out.
        columns: The columns that the index was built with.
        weight: The document's weight.
    """
    if (pair := PairTexts.from_stored(row)) is not None:
        return record_of_pair(row["id"], pair, {}, weight)
    messages = json.loads(row["prompt"]) if columns.messages is not None else None
    return Record(row["id"], row["prompt"], row["completion"], {}, messages, weight)


def stored_weight(row: Mapping[str, Any], columns: ColumnsSpec) -> float | None:
    """Returns the weight of a document from its row in a document table, or None where it was not stored.

    Release 0.1.0 stored no weights; without a weight column, they are 1.
    """
    if "weight" in row:
        return row["weight"]
    return 1.0 if columns.weight is None else None
