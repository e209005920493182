"""TODO"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class EvaluationDocument:
    """One training document; `metadata` holds its person and attribute, `fact` the id of its fact."""

    id: str
    text: str
    fact: str
    metadata: Mapping[str, str]


@dataclass(frozen=True)
class EvaluationQuery:
    """A prompt that ends before the answer, and the answer as `completion`, led by a space."""

    id: str
    prompt: str
    completion: str
    fact: str


def gold_value(value: Any) -> str:
    """A value that tells which documents are right, as text; '' where there is none."""
    return "" if value is None else str(value)
