"""What a search finds for one query: rows with their scores, and the scores of rows drawn at random to compare with."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float32

from bergson_core.schemas.results import ResultRow
from bergson_core.search.exact_scores import StoredRow


@dataclass(frozen=True)
class StoredDocument:
    """What it takes to take the score of a row apart by its tokens: the document's text, and what is stored of it."""

    prompt: str
    completion: str | None
    stored: StoredRow


@dataclass(frozen=True)
class Hit:
    """A row that was found; with `retold` where the query asks what its tokens do."""

    row: ResultRow
    retold: StoredDocument | None = None


@dataclass(frozen=True)
class SearchResult:
    """Hits, best first, None for a direction that was not asked for; `sampled` are the scores of the sampled rows."""

    proponents: Sequence[Hit] | None
    opponents: Sequence[Hit] | None
    sampled: Float32[np.ndarray, " r"]
