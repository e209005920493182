"""TODO"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Final

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from bergson_core.errors import IndexCorrupt
from bergson_core.schemas.filters import Condition
from bergson_core.schemas.results import ResultRow
from bergson_core.search.background_sample import BackgroundSample
from bergson_core.search.candidates import CandidateSearch
from bergson_core.search.exact_scores import ExactScorer, StoredRow
from bergson_core.search.metadata_filter import MetadataFilter
from bergson_core.search.profile import Profile
from bergson_core.search.searcher import Hit, SearchRequest, SearchResult, StoredDocument
from bergson_core.search.thread_pool import parallel_map
from bergson_core.search.visible_rows import VisibleRows
from bergson_core.shards.shard import RowShape, Shard
from bergson_core.storage.document_table import document_at
from bergson_core.storage.integrity import find_damaged_files
from bergson_core.storage.layout import lengths_path, search_path
from bergson_core.storage.manifest import FileEntry, Manifest, ShardEntry

_EXACT_SEARCH_FACTOR: Final = 10
"""Times the candidates: so few rows that meet a filter are all scored exactly."""


@dataclass(frozen=True)
class LocalSearcher:
    """The shards of an index that are whole, or some of them. For one thread.

    `damaged` says of each other shard what is wrong with it.
    """

    manifest: Manifest
    shards: Sequence[Shard]
    profiles: Mapping[str, Profile]
    candidate_search: CandidateSearch
    metadata: MetadataFilter
    visible: VisibleRows
    damaged: Mapping[str, str]

    @classmethod
    def open(cls, root: Path, manifest: Manifest, names: Collection[str] | None = None) -> "LocalSearcher":
        """The shards of these names, or all, of the index in directory `root`.

        Raises `IndexCorrupt` where what they share is damaged.
        """
        entries = [entry for entry in manifest.shards if names is None or entry.name in names]
        damaged = _find_damaged_shards(root, manifest, entries)
        entries = [entry for entry in entries if entry.name not in damaged]
        shape, spec = RowShape.of(manifest), manifest.spec
        shards = [Shard.open(root, entry, shape) for entry in entries]
        return cls(
            manifest=manifest,
            shards=shards,
            profiles={one.name: Profile.open(root, spec, one.name, entries) for one in manifest.profiles},
            candidates=CandidateSearch.open(root, shards, manifest.search.kind),
            metadata=MetadataFilter(shards, spec.columns.metadata),
            visible=VisibleRows(root, manifest, shards),
            damaged=damaged,
        )

    @cached_property
    def background(self) -> BackgroundSample:
        """Rows to compare results with, read when they are first asked for."""
        return BackgroundSample.read(self.shards, self.manifest.rows, self.manifest.spec.gradients.seed)

    def search(self, blocks: Float[Tensor, "q m d"], queries: Sequence[SearchRequest]) -> list[SearchResult]:
        """What is found for each query from its row."""
        signs = {"proponents": (1,), "opponents": (-1,), "both": (1, -1)}
        hits: list[dict[int, list[Hit]]] = [{} for _ in queries]
        sampled: list[np.ndarray] = [np.empty(0, np.float32)] * len(queries)
        left = list(range(len(queries)))
        while left:
            first = queries[left[0]]
            here = [k for k in left if queries[k].can_be_batched_with(first)]
            left = [k for k in left if k not in here]
            profile = self.profiles[first.profile]
            phi, weights = profile.prepare_queries(blocks[here])
            exact = ExactScorer(self.shards, profile)
            asked = [(i, sign) for i, k in enumerate(here) for sign in signs[queries[k].direction]]
            directed = torch.stack([sign * phi[i] for i, sign in asked])
            count = profile.candidate_count(max(queries[k].top_k for k in here), self.manifest)
            candidates = self._candidates(directed, count, first.filter)
            work = ((exact, weights[i], *rows) for (i, _), *rows in zip(asked, *candidates, strict=True))
            scored = parallel_map(_scored, work)
            for (i, sign), (shards, places, parts) in zip(asked, scored, strict=True):
                query, scores = queries[here[i]], parts.sum(1).numpy()
                best = np.argsort(-sign * scores, kind="stable")[: query.top_k]
                stored: Sequence[StoredRow | None] = [None] * len(best)
                if "tokens" in query.include:
                    stored = exact.stored_rows(weights[i], shards[best], places[best])
                hits[here[i]][sign] = [
                    self._hit(rank, int(shards[c]), int(places[c]), parts[c], query, kept)
                    for rank, (c, kept) in enumerate(zip(best, stored, strict=True), start=1)
                ]
            for k, scores in zip(
                here, self.background.scores(profile, weights, self.visible.masks()), strict=True
            ):
                sampled[k] = scores
        return [
            SearchResult(one.get(1), one.get(-1), scores) for one, scores in zip(hits, sampled, strict=True)
        ]

    def _candidates(
        self, queries: Tensor, count: int, conditions: Mapping[str, Condition] | None
    ) -> tuple[np.ndarray, np.ndarray]:
        """(shard [q, k], place [q, k] or -1) of the rows to score exactly.

        Where few rows meet the conditions, these are all of them: among few, FAISS has nothing to save.
        """
        visible = self.visible.masks()
        if conditions is None:
            return self.candidate_search.find(queries, count, visible)
        meeting = self.metadata.matching_rows(conditions)
        allowed = [rows if mask is None else rows & mask for rows, mask in zip(meeting, visible, strict=True)]
        if sum(int(mask.sum()) for mask in allowed) > _EXACT_SEARCH_FACTOR * count:
            return self.candidate_search.find(queries, count, allowed)
        places = [np.flatnonzero(mask) for mask in allowed]
        shards = np.repeat(np.arange(len(places)), [len(one) for one in places])
        shape = (len(queries), len(shards))
        return np.broadcast_to(shards, shape), np.broadcast_to(np.concatenate(places), shape)

    def _hit(
        self, rank: int, shard: int, place: int, parts: Tensor, query: SearchRequest, stored: StoredRow | None
    ) -> Hit:
        """The row at this place, whose score the `parts` [m] of its layers sum to."""
        row, modules = document_at(self.shards[shard].documents, place), None
        text = "text" in query.include
        if "modules" in query.include:
            names = (module.name for module in self.manifest.modules)
            modules = dict(zip(names, parts.tolist(), strict=True))
        found = ResultRow(
            rank=rank,
            id=row["id"],
            score=float(parts.sum()),
            prompt=row["prompt"] if text else None,
            completion=row["completion"] if text else None,
            metadata=row["metadata"] if "metadata" in query.include else None,
            loss=row["loss"],
            modules=modules,
        )
        return Hit(found, stored and StoredDocument(row["prompt"], row["completion"], stored))


def _scored(
    asked: tuple[ExactScorer, Tensor, np.ndarray, np.ndarray],
) -> tuple[np.ndarray, np.ndarray, Tensor]:
    """(shards [k], places [k], what each layer adds to the score [k, m]) of the rows that are real."""
    exact, weights, shards, places = asked
    shards, places = shards[places >= 0], places[places >= 0]
    return shards, places, exact.module_scores(weights, shards, places)


def _find_damaged_shards(root: Path, manifest: Manifest, entries: Sequence[ShardEntry]) -> dict[str, str]:
    """What is wrong with each of these shards that is not whole. Raises `IndexCorrupt` for what all of them share."""
    owners: dict[str, str] = {}
    for shard in entries:
        owners |= {entry.path: shard.name for entry in shard.files}
        owners[search_path(manifest.search.kind, shard.name)] = shard.name
        owners |= {lengths_path(profile.name, shard.name): shard.name for profile in manifest.profiles}
    everything = [entry for part in (manifest, *entries, *manifest.profiles) for entry in part.files]
    found = find_damaged_files(root, [entry for entry in everything if _concerns(entry, owners)])
    for entry, wrong in found:
        if entry.path not in owners:
            raise IndexCorrupt(f"{wrong}; restore it from a copy or build the index again")
    return {owners[entry.path]: wrong for entry, wrong in found}


def _concerns(entry: FileEntry, owners: Collection[str]) -> bool:
    """Whether a file belongs to one of the shards at hand, or to all shards."""
    return entry.path in owners or not entry.path.endswith((".faiss", ".lengths.bin"))
