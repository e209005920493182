"""The rows of an index held by the actors of a Ray cluster: every one is asked, and the best of their answers are kept.

Each actor is a `LocalSearcher` of a run of shards on one machine. It takes as many candidates as a search of the whole index
would, so that a row that is found there is found here; its scores are the same. Actors take no slots: builds go on
beside them.
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import groupby
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import ray
import torch
from jaxtyping import Float
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy
from torch import Tensor

from bergson_core.errors import ClusterUnavailable
from bergson_core.integrations.ray_cluster import (
    TRIES,
    connect,
    first_line,
    get_result,
    slots_by_node,
    start_actor,
)
from bergson_core.search.local_searcher import LocalSearcher
from bergson_core.search.metadata_filter import MetadataFilter
from bergson_core.search.profile import Profile
from bergson_core.search.searcher import Hit, SearchRequest, SearchResult
from bergson_core.search.visible_rows import VisibleRows
from bergson_core.shards.shard import Shard
from bergson_core.storage.manifest import Manifest, ShardEntry

logger = logging.getLogger(__name__)


class SearchActor:
    """Searches some shards on a machine of the cluster; `open` comes first."""

    def open(self, root: Path, manifest: Manifest, names: Sequence[str], threads: int) -> Mapping[str, str]:
        """What is damaged of the shards of these names, as `LocalSearcher.damaged`. Raises `IndexCorrupt`."""
        torch.set_num_threads(threads)
        faiss.omp_set_num_threads(threads)
        self._searcher = LocalSearcher.open(root, manifest, names)
        return self._searcher.damaged

    def search(self, blocks: np.ndarray, queries: Sequence[SearchRequest]) -> list[SearchResult]:
        """As `LocalSearcher.search`; nothing where no shard is whole."""
        if not self._searcher.shards:
            return [merge_results([], query) for query in queries]
        return self._searcher.search(torch.from_numpy(blocks.copy()), queries)


@dataclass
class _ShardGroup:
    """Shards of these names, and the actor that has them open; `opening` is what it will say is damaged."""

    names: Sequence[str]
    actor: Any
    opening: Any
    damaged: Mapping[str, str] = field(default_factory=dict)


class RaySearcher:
    """All shards of an index, searched by actors. In the place of a `LocalSearcher`; for one thread.

    What reads rows itself, such as scores of the whole corpus, has them from the files.
    """

    def __init__(self, root: Path, manifest: Manifest) -> None:
        """Raises `IndexCorrupt` where what all shards share is damaged, and `ClusterUnavailable`."""
        connect()
        self._root, self._manifest, self._shared = root.absolute(), manifest, ray.put(manifest)
        runs = split_shards(manifest.shards, max(1, len(_places())))
        started = [self._started(names, number) for number, names in enumerate(runs)]
        self._parts = [self._opened(part, number) for number, part in enumerate(started)]
        self.metadata = MetadataFilter((), manifest.spec.columns.metadata)

    @property
    def damaged(self) -> Mapping[str, str]:
        """What is wrong with each shard that is not whole."""
        return {name: wrong for part in self._parts for name, wrong in part.damaged.items()}

    @cached_property
    def local(self) -> LocalSearcher:
        """The same shards, open in this process."""
        names = [entry.name for entry in self._manifest.shards if entry.name not in self.damaged]
        return LocalSearcher.open(self._root, self._manifest, names)

    @property
    def shards(self) -> Sequence[Shard]:
        return self.local.shards

    @property
    def visible(self) -> VisibleRows:
        return self.local.visible

    @property
    def profiles(self) -> Mapping[str, Profile]:
        return self.local.profiles

    def search(self, blocks: Float[Tensor, "q m d"], queries: Sequence[SearchRequest]) -> list[SearchResult]:
        """What is found for each query from its row. Raises `ClusterUnavailable` where actors die again and again."""
        question = (ray.put(blocks.numpy()), queries)
        asked = [part.actor.search.remote(*question) for part in self._parts]
        answers = []
        for number, reference in enumerate(asked):
            try:
                answers.append(get_result(reference))
            except RayError as error:
                part = self._parts[number] = self._replaced(self._parts[number], number, error)
                answers.append(_last(part.actor.search.remote(*question)))
        return [merge_results(found, query) for query, *found in zip(queries, *answers, strict=True)]

    def _started(self, names: Sequence[str], number: int) -> _ShardGroup:
        """An actor on the machine whose turn it is, on its way to have these shards open."""
        options: dict[str, Any] = {"num_cpus": 0}
        if places := _places():
            place = NodeAffinitySchedulingStrategy(places[number % len(places)], soft=True)
            options["scheduling_strategy"] = place
        made = start_actor(SearchActor, **options)
        opening = made.open.remote(self._root, self._shared, names, torch.get_num_threads())
        return _ShardGroup(names, made, opening)

    def _opened(self, part: _ShardGroup, number: int, tries: int = TRIES) -> _ShardGroup:
        """The part once it is open. A machine may just have died, so that others are tried."""
        if tries == 1:
            return replace(part, damaged=_last(part.opening))
        try:
            return replace(part, damaged=get_result(part.opening))
        except RayError as error:
            return self._replaced(part, number + 1, error, tries - 1)

    def _replaced(self, part: _ShardGroup, number: int, error: RayError, tries: int = TRIES) -> _ShardGroup:
        """Another actor for the part, open."""
        logger.warning("a search actor was lost: %s", first_line(error))
        ray.kill(part.actor)  # it may live, and not answer
        return self._opened(self._started(part.names, number), number, tries)


def _places() -> list[str]:
    """The machine of each slot of CPUs."""
    return [node for node, count in slots_by_node("cpu").items() for _ in range(count)]


def _last(reference: Any) -> Any:
    """As `result`, where nothing else is tried."""
    try:
        return get_result(reference)
    except RayError as error:
        raise ClusterUnavailable(f"actors that search the index die: {first_line(error)}") from error


def split_shards(shards: Sequence[ShardEntry], parts: int) -> list[list[str]]:
    """Names of the shards in at most so many runs of about as many rows."""
    rows = sum(entry.rows for entry in shards)

    def run(entry: ShardEntry) -> int:
        return (2 * entry.first_row + entry.rows) * parts // (2 * rows)

    return [[entry.name for entry in group] for _, group in groupby(shards, run)]


def merge_results(found: Sequence[SearchResult], query: SearchRequest) -> SearchResult:
    """The best of what was found in each run of shards; of equal scores the ones of earlier shards."""

    def best(lists: Sequence[Sequence[Hit] | None], sign: int) -> list[Hit] | None:
        if query.direction not in ("both", "proponents" if sign > 0 else "opponents"):
            return None
        hits = sorted((hit for one in lists for hit in one or ()), key=lambda hit: -sign * hit.row.score)
        return [
            replace(hit, row=hit.row.model_copy(update={"rank": rank}))
            for rank, hit in enumerate(hits[: query.top_k], start=1)
        ]

    sampled = np.concatenate([np.empty(0, np.float32), *(one.background_scores for one in found)])
    return SearchResult(
        best([one.proponents for one in found], 1), best([one.opponents for one in found], -1), sampled
    )
