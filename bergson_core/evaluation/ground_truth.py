"""What an evaluation is made with: the documents of an index, queries, and which documents are right for them.

Legend: q queries, n documents at a time.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, cast

import numpy as np
from datasets import Dataset
from jaxtyping import Float32

from bergson_core.attribution.corpus_scores import score_corpus
from bergson_core.attribution.index import AttributionIndex
from bergson_core.data.batching import Tokens, require_length, tokenize
from bergson_core.errors import ColumnNotFound, InvalidInput
from bergson_core.evaluation.queries import EvaluationQuery, gold_value
from bergson_core.models.loading import context_limit
from bergson_core.models.tokenization import tokenize_stored
from bergson_core.storage.document_table import document_at

_AT_ONCE: Final = 4096


@dataclass(frozen=True)
class IndexedDocuments:
    """The documents of an index that may be shown, in order; `rows` are what a training command gets of them."""

    ids: list[str] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)
    rows: list[dict[str, Any]] = field(default_factory=list)
    tokens: list[Tokens] = field(default_factory=list)

    @classmethod
    def of(cls, index: AttributionIndex) -> "IndexedDocuments":
        """All of them, in memory."""
        corpus, spec = cls(), index.manifest.spec
        for shard, visible in zip(index.shards, index.visible(), strict=True):
            places = np.arange(shard.entry.rows) if visible is None else np.flatnonzero(visible)
            for start in range(0, len(places), _AT_ONCE):
                rows = [document_at(shard.records, int(place)) for place in places[start : start + _AT_ONCE]]
                corpus.tokens.extend(tokenize_stored(rows, spec, index.model))
                for row in rows:
                    corpus.ids.append(row["id"])
                    corpus.texts.append(row["prompt"] + (row["completion"] or ""))
                    corpus.rows.append({key: row[key] for key in ("id", "prompt", "completion", "metadata")})
        return corpus

    def gold(self, queries: Sequence[EvaluationQuery], column: str) -> dict[str, list[int]]:
        """Query id → numbers of the documents whose metadata have the query's value in `column`."""
        by_value: dict[str, list[int]] = {}
        for number, row in enumerate(self.rows):
            by_value.setdefault(gold_value(row["metadata"].get(column)), []).append(number)
        return {query.id: by_value.get(query.fact, []) if query.fact else [] for query in queries}


def iterate_scores(
    index: AttributionIndex, queries: Sequence[EvaluationQuery]
) -> Iterator[tuple[list[str], Float32[np.ndarray, "q n"]]]:
    """(ids, scores with each query) of all documents that are shown, some at a time, in the order of the corpus."""
    texts = {name: [getattr(query, name) for query in queries] for name in ("prompt", "completion")}
    for batch in score_corpus(index, Dataset.from_dict(texts), aggregate="each"):
        scores = np.asarray(batch["scores"].flatten()).reshape(batch.num_rows, -1)
        yield batch["id"].to_pylist(), scores.T


def read_queries(dataset: Dataset, gold: str) -> list[EvaluationQuery]:
    """The queries of a dataset with the columns prompt, completion and, where there are, id and `gold`.

    Raises `ColumnNotFound`, and `InvalidInput` for what is not text and for an id that is there twice.
    """
    for column in ("prompt", "completion"):
        if column not in dataset.column_names:
            raise ColumnNotFound(
                f"the queries have no column {column!r}; they have {', '.join(dataset.column_names)}"
            )
    found = []
    for number, one in enumerate(dataset):
        row = cast("dict[str, Any]", one)
        prompt, completion = row["prompt"], row["completion"]
        if not isinstance(prompt, str) or not isinstance(completion, str) or not completion:
            raise InvalidInput(f"query {number}: expected a prompt and a completion that are text")
        found.append(
            EvaluationQuery(str(row.get("id", number)), prompt, completion, gold_value(row.get(gold)))
        )
    if len({query.id for query in found}) < len(found):
        raise InvalidInput("two queries have the same id; expected each once")
    return found


def query_tokens(index: AttributionIndex, queries: Sequence[EvaluationQuery]) -> list[Tokens]:
    model = index.model
    assert model.tokenizer is not None  # load_model always gives one
    tokens = tokenize(
        model.tokenizer, [query.prompt for query in queries], [query.completion for query in queries]
    )
    for query, one in zip(queries, tokens, strict=True):
        require_length(one, context_limit(model, None), f"query {query.id!r}")
        if one.labelled == 0:
            raise InvalidInput(f"query {query.id!r}: its completion has no token that follows another")
    return tokens
