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
from jaxtyping import Float
from safetensors import SafetensorError
from torch import Tensor

from bergson_core.errors import IndexCorrupt
from bergson_core.schemas.build_parts.checkpoints import require_between
from bergson_core.schemas.filters import Condition
from bergson_core.schemas.query import Direction
from bergson_core.search.background_sample import BackgroundSample
from bergson_core.search.bit_planes import BitPlanes
from bergson_core.search.candidates import CandidateSearch, count_allowed
from bergson_core.search.exact_scores import ExactScorer
from bergson_core.search.hits import HitMaker, ScoredRows
from bergson_core.search.metadata_filter import MetadataFilter
from bergson_core.search.profile import Profile
from bergson_core.search.searcher import Hit, SearchRequest, SearchResult
from bergson_core.search.thread_pool import parallel_map
from bergson_core.search.visible_rows import VisibleRows
from bergson_core.shards.shard import RowShape, Shard
from bergson_core.storage.damaged_shards import find_damaged_shards
from bergson_core.storage.manifest import Manifest, ShardEntry

_SIGNS: Final[dict[Direction, tuple[int, ...]]] = {
    "proponents": (1,),
    "opponents": (-1,),
    "both": (1, -1),
}
"""What scores are multiplied with, so that the best of a direction are the highest."""


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
    def _hit_maker(self) -> HitMaker:
        return HitMaker.of(self.manifest, self.shards)

    @cached_property
    def background(self) -> BackgroundSample:
        """The random rows that results are compared with, read when the first query needs them."""
        return BackgroundSample.read(self.shards, self.manifest.rows, self.manifest.spec.gradients.seed)

    def search(self, rows: Float[Tensor, "q m d"], requests: Sequence[SearchRequest]) -> list[SearchResult]:
        """Returns a result for each query.

        Args:
            rows: Raw gradient rows [q, m, d] of the queries, or what stands for them with `by_features`.
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
        features = rows if requests[0].by_features else profile.query_features(rows, checkpoints)
        phi, weights = profile.prepare_features(features)
        scorer = ExactScorer(self.shards, profile)
        rounded = None
        if self.manifest.spec.gradients.rows == "sign":
            rounded = [BitPlanes.of(query) for query in weights]
        directed = [
            (query, sign) for query, request in enumerate(requests) for sign in _SIGNS[request.direction]
        ]
        top_k = widening * max(request.top_k for request in requests)
        count = profile.candidate_count(top_k, self.manifest, checkpoints)
        allowed = self.allowed_rows(requests[0].filter)
        shard_numbers, offsets = self.candidate_search.find_or_take_all(
            torch.stack([sign * phi[query] for query, sign in directed]), count, allowed
        )

        def score_candidates(number: int) -> ScoredRows:
            query, sign = directed[number]
            is_row = offsets[number] >= 0
            places = shard_numbers[number][is_row], offsets[number][is_row]
            # How many rows the results of a grouped request are of is known only once they are sorted.
            if rounded is not None and not requests[query].group_by:
                may_be_hit = scorer.may_be_best(rounded[query], sign, *places, requests[query].top_k)
                places = places[0][may_be_hit], places[1][may_be_hit]
            return ScoredRows(*places, scorer.module_scores(weights[query], *places))

        hits: list[dict[int, list[Hit]]] = [{} for _ in requests]
        scored_candidates = parallel_map(score_candidates, range(len(directed)))
        for (query, sign), candidates in zip(directed, scored_candidates, strict=True):
            best = self._hit_maker.choose(requests[query], sign, candidates)
            hits[query][sign] = self._hit_maker.make(
                requests[query], best, scorer, weights[query], features[query]
            )
        may_have_more = offsets.shape[1] >= count and (offsets >= 0).all()
        if requests[0].group_by and may_have_more and _are_too_few(hits, requests):
            return self._search_batch(rows, requests, 4 * widening)
        background_scores = self.background.scores(profile, weights, self.visible.masks(), rounded)
        return [
            SearchResult(
                hits_by_sign.get(1), hits_by_sign.get(-1), scores, count_allowed(self.shards, allowed)
            )
            for hits_by_sign, scores in zip(hits, background_scores, strict=True)
        ]

    def _checkpoints_of(self, request: SearchRequest) -> range | None:
        """Returns the checkpoints that the scores of a request are the mean over, or None for all of them."""
        between = request.between
        return None if between is None else require_between(between, self.manifest.spec.checkpoints)

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
            row: The raw gradient row [m, d] of the query, or what stands for it with `by_features`.
            request: What is asked for; how many rows, in which direction, and a filter do not count.
            locations: For each row (position of its shard in `shards`, offset within the shard); one at least.
        """
        profile, features = self.profiles[request.profile], row[None]
        if not request.by_features:
            features = profile.query_features(features, self._checkpoints_of(request))
        _, weights = profile.prepare_features(features)
        scorer = ExactScorer(self.shards, profile)
        shard_numbers, offsets = np.array(locations).T
        module_scores = scorer.module_scores(weights[0], shard_numbers, offsets)
        rows = ScoredRows(shard_numbers, offsets, module_scores)
        hits = self._hit_maker.make(request, rows, scorer, weights[0], features[0])
        (background_scores,) = self.background.scores(profile, weights, self.visible.masks())
        return SearchResult(hits, None, background_scores)


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
