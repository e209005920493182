"""TODO"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from bergson_core.schemas.build import ColumnsSpec

Messages = Sequence[dict[str, Any]]
"""One chat: messages with a role and a content, in order."""


@dataclass(frozen=True)
class Record:
    """One training sample. `metadata` holds JSON values.

    Of a chat, `messages` is what is run and `prompt` the same as JSON. The loss is multiplied by `weight`.
    """

    id: str
    prompt: str
    completion: str | None
    metadata: dict[str, Any]
    messages: Messages | None = None
    weight: float = 1.0


def record_from_row(id: str, prompt: str, completion: str | None, columns: ColumnsSpec) -> Record:
    """The document that an index made of these columns keeps so; metadata and weight are left out."""
    messages = json.loads(prompt) if columns.messages is not None else None
    return Record(id, prompt, completion, {}, messages)
