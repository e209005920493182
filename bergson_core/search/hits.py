"""Makes the best of the scored rows of a query into hits: their documents, and the errors of their scores.

Legend: k scored rows, m modules, d numbers per module. The offset of a row is its number within its shard.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import torch
from jaxtyping import Float, Float32, Int
from torch import Tensor

from bergson_core.schemas.results import ResultRow
from bergson_core.search.exact_scores import ExactScorer, StoredRow
from bergson_core.search.projection_noise.intervals import ScoreError
from bergson_core.search.projection_noise.score_noise import ScoreNoise
from bergson_core.search.searcher import Hit, SearchRequest, StoredDocument
from bergson_core.shards.shard import Shard
from bergson_core.storage.document_table import read_document, read_whole_id
from bergson_core.storage.manifest import Manifest


@dataclass(frozen=True)
class ScoredRows:
    """Rows, with the part of each module in their scores."""

    shard_numbers: Int[np.ndarray, " k"]
    offsets: Int[np.ndarray, " k"]
    module_scores: Float32[Tensor, "k m"]

    def take(self, positions: Int[np.ndarray, " _"]) -> "ScoredRows":
        """Returns the rows at these positions."""
        module_scores = self.module_scores[torch.from_numpy(positions)]
        return ScoredRows(self.shard_numbers[positions], self.offsets[positions], module_scores)


@dataclass(frozen=True)
class HitMaker:
    """Makes hits of the rows of an index, or of some of its shards.

    Attributes:
        shards: The shards.
        module_names: The names of the m modules.
        noise: The noise of the projections, or None where rows do not show it.
    """

    shards: Sequence[Shard]
    module_names: Sequence[str]
    noise: ScoreNoise | None

    @classmethod
    def of(cls, manifest: Manifest, shards: Sequence[Shard]) -> Self:
        """Returns what makes hits of these shards of an index."""
        return cls(shards, [module.name for module in manifest.modules], ScoreNoise.of(manifest))

    def choose(self, request: SearchRequest, sign: int, candidates: ScoredRows) -> ScoredRows:
        """Returns the best candidates, as many as are asked for, best first.

        Args:
            request: What is asked for.
            sign: What scores are multiplied with, so that the best are the highest.
            candidates: The candidates.
        """
        order = np.argsort(-sign * candidates.module_scores.sum(1).numpy(), kind="stable")
        if request.group_by:
            order = self._first_of_each_document(candidates, order, request.top_k)
        return candidates.take(order[: request.top_k])

    def make(
        self,
        request: SearchRequest,
        rows: ScoredRows,
        scorer: ExactScorer,
        weights: Float[Tensor, "m d"],
        features: Float[Tensor, "m d"],
    ) -> list[Hit]:
        """Returns rows as hits, in their order.

        Args:
            request: What is asked for.
            rows: The rows.
            scorer: What has scored the rows.
            weights: What the rows were multiplied with.
            features: φ of the query.
        """
        places = rows.shard_numbers, rows.offsets
        stored_rows: Sequence[StoredRow | None] = [None] * len(rows.offsets)
        if "tokens" in request.include:
            stored_rows = scorer.stored_rows(weights, *places)
        errors: Sequence[ScoreError | None] = [None] * len(rows.offsets)
        if self.noise is not None:
            chunks = scorer.iter_features(*places)
            errors = [
                error
                for chunk in chunks
                for error in self.noise.errors(chunk, features, is_sum=request.by_features)
            ]
        documents = [
            read_document(self.shards[int(shard_number)].documents, int(offset))
            for shard_number, offset in zip(*places, strict=True)
        ]
        return [
            Hit(
                self._make_row(request, rank, document, module_scores),
                error,
                row and StoredDocument(document, row),
            )
            for rank, (document, module_scores, error, row) in enumerate(
                zip(documents, rows.module_scores, errors, stored_rows, strict=True), start=1
            )
        ]

    def _first_of_each_document(
        self, candidates: ScoredRows, ordered: Int[np.ndarray, " k"], count: int
    ) -> Int[np.ndarray, " _"]:
        """Returns those of the candidates that are the first of their document, at most `count` of them."""
        first: dict[str, int] = {}
        for candidate in ordered.tolist():
            if len(first) == count:
                break
            documents = self.shards[int(candidates.shard_numbers[candidate])].documents
            offset = int(candidates.offsets[candidate])
            first.setdefault(read_whole_id(documents, offset), candidate)
        return np.array(list(first.values()), dtype=np.int64)

    def _make_row(
        self,
        request: SearchRequest,
        rank: int,
        document: Mapping[str, Any],
        module_scores: Float32[Tensor, " m"],
    ) -> ResultRow:
        """Returns a document as a result, with those of its fields that the request includes."""
        with_text = "text" in request.include
        modules = None
        if "modules" in request.include:
            modules = dict(zip(self.module_names, module_scores.tolist(), strict=True))
        return ResultRow(
            rank=rank,
            id=document["id"],
            score=float(module_scores.sum()),
            prompt=document["prompt"] if with_text else None,
            completion=document["completion"] if with_text else None,
            rejected=document["rejected"] if with_text else None,
            metadata=document["metadata"] if "metadata" in request.include else None,
            loss=document["loss"],
            modules=modules,
            chunk=document["chunk"],
        )
