"""A document as it is read from a dataset, before it is tokenised."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from bergson_core.schemas.build import ColumnsSpec
from bergson_core.schemas.documents import Chunk

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
        chunk: What the text is a part of, where a document was cut. It is not in the `repr`, which names the content.
    """

    id: str
    prompt: str
    completion: str | None
    metadata: dict[str, Any]
    messages: Messages | None = None
    weight: float = 1.0
    chunk: Chunk | None = field(default=None, repr=False)


def record_from_stored(id: str, prompt: str, completion: str | None, columns: ColumnsSpec) -> Record:
    """Returns the document that an index with these columns stored as `prompt` and `completion`.

    Metadata is left empty. The weight is 1, because an index does not store weights.
    """
    messages = json.loads(prompt) if columns.messages is not None else None
    return Record(id, prompt, completion, {}, messages)
