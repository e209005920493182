"""TODO"""

from dataclasses import dataclass

from bergson_core.data.batching import Tokens


@dataclass(frozen=True)
class TokenizedQuery:
    """What the model said, given or generated, and the tokens of prompt and completion."""

    completion: str
    tokens: Tokens
