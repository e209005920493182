"""What an evaluation works on: the documents of an index, the tokens of the queries, and their gold documents."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np

from bergson_core.attribution.index import AttributionIndex
from bergson_core.errors import InvalidInput
from bergson_core.evaluation.queries import EvaluationQuery, gold_value
from bergson_core.models.index_tokens import tokenize_stored
from bergson_core.schemas.record import Record
from bergson_core.storage.document_table import read_document
from bergson_core.tokens.tokenization import Tokens, tokenize
from bergson_core.tokens.word_joins import JoinChecker, MissingSpaceCounter

_MAX_SCORES: Final = 2**28
"""Largest number of scores, queries × documents, of a table: 1 GiB of float32."""
_CHUNK_DOCUMENTS: Final = 4096
"""Documents that are tokenised in one call."""
_TRAINING_FIELDS: Final = ("id", "prompt", "completion", "metadata")
"""Fields of a document that a training command always gets."""


@dataclass(frozen=True)
class IndexedDocuments:
    """All visible documents of an index in memory, in the order of the corpus. The lists are equally long.

    Attributes:
        ids: Id of each document.
        texts: Prompt and completion of each document, joined.
        fields: `id`, `prompt`, `completion` and `metadata` of each document, as a training command gets them, and its
            `weight` if the index was built with a weight column, and `rejected` if it is one of preference pairs.
        tokens: The tokens that the index was built from.
        weights: The weight of each document.
    """

    ids: list[str] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)
    fields: list[dict[str, Any]] = field(default_factory=list)
    tokens: list[Tokens] = field(default_factory=list)
    weights: list[float] = field(default_factory=list)

    @classmethod
    def read(cls, index: AttributionIndex) -> "IndexedDocuments":
        """Reads all documents of an index that were not taken down."""
        documents, spec = cls(), index.manifest.spec
        names = (*_TRAINING_FIELDS, *(("weight",) if spec.columns.weight is not None else ()))
        names += ("rejected",) if spec.columns.chosen is not None else ()
        for shard, visible in zip(index.shards, index.visible(), strict=True):
            positions = np.arange(shard.entry.rows) if visible is None else np.flatnonzero(visible)
            for start in range(0, len(positions), _CHUNK_DOCUMENTS):
                chunk = positions[start : start + _CHUNK_DOCUMENTS]
                stored = [read_document(shard.documents, int(position)) for position in chunk]
                documents.tokens.extend(tokenize_stored(stored, spec, index.model))
                for document in stored:
                    documents.ids.append(document["id"])
                    documents.texts.append(document["prompt"] + (document["completion"] or ""))
                    documents.fields.append({name: document[name] for name in names})
                    documents.weights.append(document.get("weight", 1.0))
        return documents

    def gold_positions(self, queries: Sequence[EvaluationQuery], column: str) -> dict[str, list[int]]:
        """Finds the gold documents of each query.

        Args:
            queries: Queries with gold values; a query without one has no gold documents.
            column: Metadata column with the gold values of the documents.

        Returns:
            For each query id, the positions of its gold documents in the lists of this class.
        """
        positions_by_value: dict[str, list[int]] = {}
        for position, fields in enumerate(self.fields):
            value = gold_value(fields["metadata"].get(column))
            positions_by_value.setdefault(value, []).append(position)
        return {query.id: positions_by_value.get(query.gold, []) if query.gold else [] for query in queries}


@dataclass(frozen=True)
class EvaluationInputs:
    """An index and the queries that it is evaluated with.

    Attributes:
        index: The index.
        documents: Its visible documents.
        queries: The queries.
        query_tokens: Tokens of each query; the completion is labelled.
        gold: For each query id, the positions of its gold documents in `documents`.
    """

    index: AttributionIndex
    documents: IndexedDocuments
    queries: Sequence[EvaluationQuery]
    query_tokens: Sequence[Tokens]
    gold: Mapping[str, Sequence[int]]

    @classmethod
    def read(
        cls, index: AttributionIndex, queries: Sequence[EvaluationQuery], gold_column: str
    ) -> "EvaluationInputs":
        """Reads the documents of an index and tokenises the queries.

        Args:
            index: The index.
            queries: The queries.
            gold_column: Metadata column with the gold values of the documents.

        Raises:
            TooLong: A query has more tokens than the model takes.
            InvalidInput: There are no queries or no documents, a query has no loss, or there are more scores than fit
                into memory.
        """
        if not queries:
            raise InvalidInput("there are no queries; expected at least one")
        query_tokens = tokenize_queries(index, queries)
        documents = IndexedDocuments.read(index)
        if not documents.ids:
            raise InvalidInput(f"all documents of {index.name} were taken down; expected at least one")
        if len(queries) * len(documents.ids) > _MAX_SCORES:
            raise InvalidInput(
                f"{len(queries):,} queries × {len(documents.ids):,} documents are more than {_MAX_SCORES:,} scores: "
                "take fewer queries"
            )
        return cls(index, documents, queries, query_tokens, documents.gold_positions(queries, gold_column))

    @property
    def has_gold(self) -> bool:
        """Whether every query has gold documents."""
        return all(self.gold.values())

    def require_gold(self, gold_column: str) -> None:
        """Raises `InvalidInput`, saying what is missing, unless every query has gold documents."""
        columns = self.index.manifest.spec.columns.metadata
        if gold_column not in columns:
            raise InvalidInput(
                f"{self.index.name} has no metadata column {gold_column!r} that says which documents are right; it has "
                f"{', '.join(columns) or 'none'}. Build it with --metadata_column {gold_column}, or leave retrieval out"
            )
        for query in self.queries:
            if not self.gold[query.id]:
                raise InvalidInput(
                    f"query {query.id!r} has no gold documents: no document in the index has "
                    f"{gold_column} = {query.gold!r}"
                )


def tokenize_queries(index: AttributionIndex, queries: Sequence[EvaluationQuery]) -> list[Tokens]:
    """Tokenises queries as the index does; the tokens of the completions are labelled.

    Raises:
        TooLong: A query has more tokens than the model takes.
        InvalidInput: No token of a completion follows another token, so that the query has no loss.
    """
    model = index.model
    assert model.tokenizer is not None  # load_model always returns one
    prompts, completions = [query.prompt for query in queries], [query.completion for query in queries]
    tokenized = tokenize(model.tokenizer, prompts, completions, label_end=False)
    spaces = MissingSpaceCounter(JoinChecker(model.tokenizer))
    spaces.add([Record(query.id, query.prompt, query.completion, {}) for query in queries])
    spaces.log_warning("queries")
    limits = index.query_limits
    for query, tokens in zip(queries, tokenized, strict=True):
        limits.require(tokens, f"query {query.id!r}")
        if tokens.n_labelled == 0:
            raise InvalidInput(
                f"query {query.id!r}: no token of its completion follows another token; expected a prompt or a "
                "longer completion"
            )
    return tokenized
