"""Searches the shards of an index in this process: candidates first, then their exact scores, then the best of them.

The candidates of a query are the rows that FAISS, or the Hamming distance, takes for its best (`candidates`). Their
exact scores are computed from the stored rows (`exact_scores`), and the best of them are the hits.

Legend: q queries of a batch, b directed queries, k candidates, m modules, d numbers per module, D = m·d. A directed
query is a query with a direction; a query with the direction `both` makes two of them. The offset of a row is its
number within its shard.
"""

from collections.abc import Collection, Hashable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Final

import numpy as np
import torch
from jaxtyping import Float, Float32, Int
from safetensors import SafetensorError
from torch import Tensor

from bergson_core.errors import IndexCorrupt
from bergson_core.schemas.build_parts.checkpoints import require_between
from bergson_core.schemas.filters import Condition
from bergson_core.schemas.query import Direction
from bergson_core.schemas.results import ResultRow
from bergson_core.search.background_sample import BackgroundSample
from bergson_core.search.bit_planes import BitPlanes
from bergson_core.search.candidates import CandidateSearch
from bergson_core.search.exact_scores import ExactScorer, StoredRow
from bergson_core.search.metadata_filter import MetadataFilter
from bergson_core.search.profile import Profile
from bergson_core.search.searcher import Hit, SearchRequest, SearchResult, StoredDocument
from bergson_core.search.thread_pool import parallel_map
from bergson_core.search.visible_rows import VisibleRows
from bergson_core.shards.shard import RowShape, Shard
from bergson_core.storage.damaged_shards import find_damaged_shards
from bergson_core.storage.document_table import read_document, read_whole_id
from bergson_core.storage.manifest import Manifest, ShardEntry

_EXACT_SEARCH_FACTOR: Final = 10
"""Rows that meet a filter are all scored exactly where they are at most this many times as many as the candidates."""
_SIGNS: Final[dict[Direction, tuple[int, ...]]] = {
    "proponents": (1,),
    "opponents": (-1,),
    "both": (1, -1),
}
"""What scores are multiplied with, so that the best of a direction are the highest."""


@dataclass(frozen=True)
class _ScoredCandidates:
    """The candidates of a directed query, with the part of each module in their scores."""

    shard_numbers: Int[np.ndarray, " k"]
    offsets: Int[np.ndarray, " k"]
    module_scores: Float32[Tensor, "k m"]

    def best(self, sign: int, count: int) -> Int[np.ndarray, " count"]:
        """Returns the positions of the candidates whose score times `sign` is highest, highest first."""
        return np.argsort(-sign * self.module_scores.sum(1).numpy(), kind="stable")[:count]


@dataclass(frozen=True)
class LocalSearcher:
    """All undamaged shards of an index, or some of them, mapped into memory. For use by one thread.

    `damaged` says what is wrong with each shard that is left out because it is damaged.
    """

    manifest: Manifest
    shards: Sequence[Shard]
    profiles: Mapping[str, Profile]
    candidate_search: CandidateSearch
    metadata: MetadataFilter
    visible: VisibleRows
    damaged: Mapping[str, str]

    @classmethod
    def open(
        cls, root: Path, manifest: Manifest, shard_names: Collection[str] | None = None
    ) -> "LocalSearcher":
        """Checks and maps the shards of an index.

        Args:
            root: Directory of the index.
            manifest: Manifest of the index.
            shard_names: Which shards to open; by default all of them.

        Raises:
            IndexCorrupt: A file that all shards share is damaged, or files do not fit the manifest.
        """
        entries = [entry for entry in manifest.shards if shard_names is None or entry.name in shard_names]
        damaged = find_damaged_shards(root, manifest, entries)
        entries = [entry for entry in entries if entry.name not in damaged]
        try:
            return cls._map(root, manifest, entries, damaged)
        except (OSError, ArithmeticError, RuntimeError, ValueError, SafetensorError) as error:
            raise IndexCorrupt(
                f"files of the index {root.name} do not fit its manifest: {error}; restore them from a copy or build "
                "the index again"
            ) from error

    @classmethod
    def _map(
        cls, root: Path, manifest: Manifest, entries: Sequence[ShardEntry], damaged: Mapping[str, str]
    ) -> "LocalSearcher":
        """Maps shards whose files are those that the manifest lists."""
        shape, spec = RowShape.of(manifest), manifest.spec
        shards = [Shard.open(root, entry, shape) for entry in entries]
        return cls(
            manifest=manifest,
            shards=shards,
            profiles={
                profile.name: Profile.open(root, spec, profile.name, entries) for profile in manifest.profiles
            },
            candidate_search=CandidateSearch.open(root, shards, manifest.search.kind),
            metadata=MetadataFilter(shards, manifest),
            visible=VisibleRows(root, manifest, shards),
            damaged=damaged,
        )

    @cached_property
    def background(self) -> BackgroundSample:
        """The random rows that results are compared with, read when the first query needs them."""
        return BackgroundSample.read(self.shards, self.manifest.rows, self.manifest.spec.gradients.seed)

    def search(self, rows: Float[Tensor, "q m d"], requests: Sequence[SearchRequest]) -> list[SearchResult]:
        """Returns a result for each query.

        Args:
            rows: Raw gradient rows [q, m, d] of the queries.
            requests: What is asked for each query.
        """
        results: dict[int, SearchResult] = {}
        for batch in _batch_requests(requests):
            batch_results = self._search_batch(rows[batch], [requests[query] for query in batch])
            results |= zip(batch, batch_results, strict=True)
        return [results[query] for query in range(len(requests))]

    def _search_batch(
        self, rows: Float[Tensor, "q m d"], requests: Sequence[SearchRequest], widening: int = 1
    ) -> list[SearchResult]:
        """Searches for queries that share a profile, a filter, a grouping and a range of checkpoints.

        Where results are grouped and the candidates are of too few documents, four times as many results are searched
        for, until there are no more candidates.
        """
        profile = self.profiles[requests[0].profile]
        checkpoints = self._checkpoints_of(requests[0])
        phi, weights = profile.prepare_queries(rows, checkpoints)
        scorer = ExactScorer(self.shards, profile)
        rounded = None
        if self.manifest.spec.gradients.rows == "sign":
            rounded = [BitPlanes.of(query) for query in weights]
        directed = [
            (query, sign) for query, request in enumerate(requests) for sign in _SIGNS[request.direction]
        ]
        top_k = widening * max(request.top_k for request in requests)
        count = profile.candidate_count(top_k, self.manifest, checkpoints)
        shard_numbers, offsets = self._find_candidates(
            torch.stack([sign * phi[query] for query, sign in directed]), count, requests[0].filter
        )

        def score_candidates(number: int) -> _ScoredCandidates:
            query, sign = directed[number]
            is_row = offsets[number] >= 0
            places = shard_numbers[number][is_row], offsets[number][is_row]
            # How many rows the results of a grouped request are of is known only once they are sorted.
            if rounded is not None and not requests[query].group_by:
                may_be_hit = scorer.may_be_best(rounded[query], sign, *places, requests[query].top_k)
                places = places[0][may_be_hit], places[1][may_be_hit]
            return _ScoredCandidates(*places, scorer.module_scores(weights[query], *places))

        hits: list[dict[int, list[Hit]]] = [{} for _ in requests]
        scored_candidates = parallel_map(score_candidates, range(len(directed)))
        for (query, sign), candidates in zip(directed, scored_candidates, strict=True):
            hits[query][sign] = self._make_hits(requests[query], sign, candidates, scorer, weights[query])
        may_have_more = offsets.shape[1] >= count and (offsets >= 0).all()
        if requests[0].group_by and may_have_more and _are_too_few(hits, requests):
            return self._search_batch(rows, requests, 4 * widening)
        background_scores = self.background.scores(profile, weights, self.visible.masks(), rounded)
        return [
            SearchResult(hits_by_sign.get(1), hits_by_sign.get(-1), scores)
            for hits_by_sign, scores in zip(hits, background_scores, strict=True)
        ]

    def _checkpoints_of(self, request: SearchRequest) -> range | None:
        """Returns the checkpoints that the scores of a request are the mean over, or None for all of them."""
        between = request.between
        return None if between is None else require_between(between, self.manifest.spec.checkpoints)

    def _find_candidates(
        self, queries: Float[Tensor, "b D"], count: int, conditions: Mapping[str, Condition] | None
    ) -> tuple[Int[np.ndarray, "b k"], Int[np.ndarray, "b k"]]:
        """Returns (shard numbers, offsets) of the rows to score exactly; an offset of -1 stands for no row.

        Where few rows meet the conditions, all of them are returned: scoring them takes no longer than asking FAISS.
        """
        if conditions is None:
            return self.candidate_search.find(queries, count, self.visible.masks())
        allowed = self._matching_rows(conditions)
        if sum(int(mask.sum()) for mask in allowed) > _EXACT_SEARCH_FACTOR * count:
            return self.candidate_search.find(queries, count, allowed)
        offsets = [np.flatnonzero(mask) for mask in allowed]
        shard_numbers = np.repeat(np.arange(len(offsets)), [len(in_shard) for in_shard in offsets])
        shape = (len(queries), len(shard_numbers))
        return np.broadcast_to(shard_numbers, shape), np.broadcast_to(np.concatenate(offsets), shape)

    def allowed_rows(self, conditions: Mapping[str, Condition] | None) -> Sequence[np.ndarray | None]:
        """Returns for each shard which rows are visible and meet all conditions: bool [n], or None for all of them."""
        return self.visible.masks() if conditions is None else self._matching_rows(conditions)

    def _matching_rows(self, conditions: Mapping[str, Condition]) -> list[np.ndarray]:
        return [
            rows if mask is None else rows & mask
            for rows, mask in zip(self.metadata.matching_rows(conditions), self.visible.masks(), strict=True)
        ]

    def score_rows(
        self, row: Float[Tensor, "m d"], request: SearchRequest, locations: Sequence[tuple[int, int]]
    ) -> SearchResult:
        """Returns chosen rows as the `proponents` of a query, in the order in which they are given.

        Args:
            row: The raw gradient row [m, d] of the query.
            request: What is asked for; how many rows, in which direction, and a filter do not count.
            locations: For each row (position of its shard in `shards`, offset within the shard); one at least.
        """
        profile = self.profiles[request.profile]
        _, weights = profile.prepare_queries(row[None], self._checkpoints_of(request))
        scorer = ExactScorer(self.shards, profile)
        shard_numbers, offsets = np.array(locations).T
        scored = _ScoredCandidates(
            shard_numbers, offsets, scorer.module_scores(weights[0], shard_numbers, offsets)
        )
        hits = self._hits_at(request, np.arange(len(offsets)), scored, scorer, weights[0])
        (background_scores,) = self.background.scores(profile, weights, self.visible.masks())
        return SearchResult(hits, None, background_scores)

    def _make_hits(
        self,
        request: SearchRequest,
        sign: int,
        candidates: _ScoredCandidates,
        scorer: ExactScorer,
        weights: Float[Tensor, "m d"],
    ) -> list[Hit]:
        """Returns the best candidates of a directed query as hits."""
        best = candidates.best(sign, len(candidates.offsets) if request.group_by else request.top_k)
        if request.group_by:
            best = self._first_of_each_document(candidates, best, request.top_k)
        return self._hits_at(request, best, candidates, scorer, weights)

    def _hits_at(
        self,
        request: SearchRequest,
        positions: Int[np.ndarray, " b"],
        candidates: _ScoredCandidates,
        scorer: ExactScorer,
        weights: Float[Tensor, "m d"],
    ) -> list[Hit]:
        """Returns the candidates at these positions as hits, in this order."""
        shard_numbers, offsets = candidates.shard_numbers[positions], candidates.offsets[positions]
        stored_rows: Sequence[StoredRow | None] = [None] * len(positions)
        if "tokens" in request.include:
            stored_rows = scorer.stored_rows(weights, shard_numbers, offsets)
        return [
            self._make_hit(request, rank, int(shard_number), int(offset), module_scores, stored_row)
            for rank, (shard_number, offset, module_scores, stored_row) in enumerate(
                zip(shard_numbers, offsets, candidates.module_scores[positions], stored_rows, strict=True),
                start=1,
            )
        ]

    def _first_of_each_document(
        self, candidates: _ScoredCandidates, ordered: Int[np.ndarray, " k"], count: int
    ) -> Int[np.ndarray, " b"]:
        """Returns those of the candidates that are the first of their document, at most `count` of them."""
        first: dict[str, int] = {}
        for candidate in ordered.tolist():
            if len(first) == count:
                break
            documents = self.shards[int(candidates.shard_numbers[candidate])].documents
            offset = int(candidates.offsets[candidate])
            first.setdefault(read_whole_id(documents, offset), candidate)
        return np.array(list(first.values()), dtype=np.int64)

    def _make_hit(
        self,
        request: SearchRequest,
        rank: int,
        shard_number: int,
        offset: int,
        module_scores: Float32[Tensor, " m"],
        stored_row: StoredRow | None,
    ) -> Hit:
        """Returns a row with those of its fields that the request includes."""
        document = read_document(self.shards[shard_number].documents, offset)
        with_text = "text" in request.include
        modules = None
        if "modules" in request.include:
            names = (module.name for module in self.manifest.modules)
            modules = dict(zip(names, module_scores.tolist(), strict=True))
        row = ResultRow(
            rank=rank,
            id=document["id"],
            score=float(module_scores.sum()),
            prompt=document["prompt"] if with_text else None,
            completion=document["completion"] if with_text else None,
            metadata=document["metadata"] if "metadata" in request.include else None,
            loss=document["loss"],
            modules=modules,
            chunk=document["chunk"],
        )
        if stored_row is None:
            return Hit(row)
        return Hit(row, StoredDocument(document["prompt"], document["completion"], stored_row))


def _batch_requests(requests: Sequence[SearchRequest]) -> Collection[list[int]]:
    """Returns the positions of requests that can be searched for together."""
    if len(requests) == 1:
        return [[0]]
    batches: dict[Hashable, list[int]] = {}
    for number, request in enumerate(requests):
        batches.setdefault(request.batch_key, []).append(number)
    return batches.values()


def _are_too_few(hits: Sequence[Mapping[int, Sequence[Hit]]], requests: Sequence[SearchRequest]) -> bool:
    """Returns whether a request has fewer hits than it asks for in one of its directions."""
    return any(
        len(in_direction) < request.top_k
        for hits_by_sign, request in zip(hits, requests, strict=True)
        for in_direction in hits_by_sign.values()
    )
