"""The texts of a preference pair: its prompt, what was preferred, and what was rejected."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class PairTexts:
    """A preference pair as it is read and stored.

    Attributes:
        prompt: What both completions begin with, or the messages before them as JSON text.
        chosen: The preferred completion, or its messages as JSON text.
        rejected: The other one.
        is_chat: Whether all three are messages.
        reference_margin: log p(chosen) - log p(rejected) of the reference model, in nats; 0 without a reference.
    """

    prompt: str
    chosen: str
    rejected: str
    is_chat: bool
    reference_margin: float = 0.0

    def chats(self) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
        """Returns the messages of the chosen and of the rejected chat, those of the prompt included."""
        prompt = json.loads(self.prompt)
        return [*prompt, *json.loads(self.chosen)], [*prompt, *json.loads(self.rejected)]

    @classmethod
    def from_stored(cls, row: Mapping[str, Any]) -> "PairTexts | None":
        """Returns the pair in a row of a table of documents, or None if the document is no pair."""
        if row.get("rejected") is None:
            return None
        return cls(row["prompt"], row["completion"], row["rejected"], row["is_chat"], row["reference_margin"])
