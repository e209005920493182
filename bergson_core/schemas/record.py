"""A document as it is read from a dataset, before it is tokenised."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from bergson_core.schemas.build import ColumnsSpec

Messages = Sequence[dict[str, Any]]
"""One chat: messages with a role and a content, in order."""


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
    """

    id: str
    prompt: str
    completion: str | None
    metadata: dict[str, Any]
    messages: Messages | None = None
    weight: float = 1.0


def record_from_stored(
    id: str, prompt: str, completion: str | None, columns: ColumnsSpec, weight: float = 1.0
) -> Record:
    """Returns the document that an index with these columns stored as `prompt`, `completion` and `weight`.

    Metadata is left empty.
    """
    messages = json.loads(prompt) if columns.messages is not None else None
    return Record(id, prompt, completion, {}, messages, weight)


def stored_weight(row: Mapping[str, Any], columns: ColumnsSpec) -> float | None:
    """Returns the weight of a document from its row in a document table, or None where it was not stored.

    Release 0.1.0 stored no weights; without a weight column, they are 1.
    """
    if "weight" in row:
        return row["weight"]
    return 1.0 if columns.weight is None else None
