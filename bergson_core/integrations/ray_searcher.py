"""Searches an index through the actors of a Ray cluster, which hold its shards, and merges their results.

Each actor runs a `LocalSearcher` over a run of consecutive shards on one machine. It takes as many candidates as a
search of the whole index would, so that every row that such a search finds is found here too, with the same score. The
actors take no slots of the cluster, so builds can run beside them.

Legend: q queries, m modules, d numbers per module.
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
    MAX_ATTEMPTS,
    connect,
    first_line,
    get_result,
    slots_by_node,
    start_actor,
)
from bergson_core.schemas.filters import Condition
from bergson_core.search.local_searcher import LocalSearcher
from bergson_core.search.metadata_filter import MetadataFilter
from bergson_core.search.profile import Profile
from bergson_core.search.searcher import Hit, SearchRequest, SearchResult
from bergson_core.search.visible_rows import VisibleRows
from bergson_core.shards.shard import Shard
from bergson_core.storage.manifest import Manifest, ShardEntry
from bergson_core.storage.metadata_types import recorded_types

logger = logging.getLogger(__name__)


class SearchActor:
    """Searches some shards of an index on a machine of the cluster. Call `open` first."""

    def open(
        self, root: Path, manifest: Manifest, shard_names: Sequence[str], threads: int
    ) -> Mapping[str, str]:
        """Opens the shards of these names.

        Returns:
            What is wrong with each damaged shard, by its name.

        Raises:
            IndexCorrupt: A file that all shards need is damaged.
        """
        torch.set_num_threads(threads)
        faiss.omp_set_num_threads(threads)
        self._searcher = LocalSearcher.open(root, manifest, shard_names)
        return self._searcher.damaged

    def search(self, rows: np.ndarray, requests: Sequence[SearchRequest]) -> list[SearchResult]:
        """Searches like `LocalSearcher.search`. Finds nothing if all shards are damaged."""
        if not self._searcher.shards:
            return [merge_results([], request) for request in requests]
        return self._searcher.search(torch.from_numpy(rows.copy()), requests)


@dataclass
class _ShardGroup:
    """Some shards, and the actor that opens them.

    Attributes:
        names: The names of the shards.
        actor: The handle of the actor.
        opening: A reference to the result of `SearchActor.open`.
        damaged: That result, once it is there.
    """

    names: Sequence[str]
    actor: Any
    opening: Any
    damaged: Mapping[str, str] = field(default_factory=dict)


class RaySearcher:
    """All shards of an index, searched by actors of a cluster. For use by one thread.

    Code that needs the rows themselves, such as the scoring of all documents, reads them from files in this process.

    Raises:
        IndexCorrupt: A file that all shards need is damaged.
        ClusterUnavailable: No cluster answers, or the actors keep dying.
    """

    def __init__(self, root: Path, manifest: Manifest) -> None:
        connect()
        self._root, self._manifest, self._manifest_reference = root.absolute(), manifest, ray.put(manifest)
        groups = split_shards(manifest.shards, max(1, len(_node_of_each_slot())))
        # All actors are started before waiting for the first one.
        started = [self._start_group(names, number) for number, names in enumerate(groups)]
        self._groups = [self._wait_until_open(group, number) for number, group in enumerate(started)]

    @property
    def damaged(self) -> Mapping[str, str]:
        """What is wrong with each damaged shard, by its name."""
        return {name: problem for group in self._groups for name, problem in group.damaged.items()}

    @property
    def metadata(self) -> MetadataFilter:
        """The filter over the metadata columns of the index, to check conditions with."""
        if recorded_types(self._manifest) is None:
            return self.local.metadata  # the types of columns are then read from the documents
        return MetadataFilter((), self._manifest)

    @cached_property
    def local(self) -> LocalSearcher:
        """The undamaged shards, open in this process."""
        names = [entry.name for entry in self._manifest.shards if entry.name not in self.damaged]
        return LocalSearcher.open(self._root, self._manifest, names)

    @property
    def shards(self) -> Sequence[Shard]:
        """The undamaged shards, open in this process."""
        return self.local.shards

    @property
    def visible(self) -> VisibleRows:
        """Which rows have not been taken down."""
        return self.local.visible

    @property
    def profiles(self) -> Mapping[str, Profile]:
        """The profiles of the index, by name."""
        return self.local.profiles

    def allowed_rows(self, conditions: Mapping[str, Condition] | None) -> Sequence[np.ndarray | None]:
        """Returns for each shard which rows are visible and meet all conditions: bool [n], or None for all of them."""
        return self.local.allowed_rows(conditions)

    def score_rows(
        self, row: Float[Tensor, "m d"], request: SearchRequest, locations: Sequence[tuple[int, int]]
    ) -> SearchResult:
        """Returns chosen rows as `LocalSearcher.score_rows` does: their files are read in this process."""
        return self.local.score_rows(row, request, locations)

    def search(self, rows: Float[Tensor, "q m d"], requests: Sequence[SearchRequest]) -> list[SearchResult]:
        """Searches for each query by its gradient row, and replaces actors that have died.

        Args:
            rows: The gradient rows of the queries [q, m, d].
            requests: The request of each query.

        Raises:
            ClusterUnavailable: The actors keep dying.
        """
        arguments = (ray.put(rows.numpy()), requests)
        references = [group.actor.search.remote(*arguments) for group in self._groups]
        results_by_group = []
        for number, reference in enumerate(references):
            try:
                results_by_group.append(get_result(reference))
            except RayError as error:
                group = self._groups[number] = self._replace_actor(self._groups[number], number, error)
                results_by_group.append(_get_last_result(group.actor.search.remote(*arguments)))
        return [
            merge_results(results, request)
            for request, *results in zip(requests, *results_by_group, strict=True)
        ]

    def _start_group(self, names: Sequence[str], number: int) -> _ShardGroup:
        """Starts an actor that opens these shards, on the node of the slot `number` (modulo the number of slots)."""
        options: dict[str, Any] = {"num_cpus": 0}
        if nodes := _node_of_each_slot():
            node = NodeAffinitySchedulingStrategy(nodes[number % len(nodes)], soft=True)
            options["scheduling_strategy"] = node
        actor = start_actor(SearchActor, **options)
        opening = actor.open.remote(self._root, self._manifest_reference, names, torch.get_num_threads())
        return _ShardGroup(names, actor, opening)

    def _wait_until_open(self, group: _ShardGroup, number: int, attempts: int = MAX_ATTEMPTS) -> _ShardGroup:
        """Waits until the shards of a group are open. If its machine has died, other machines are tried."""
        if attempts == 1:
            return replace(group, damaged=_get_last_result(group.opening))
        try:
            return replace(group, damaged=get_result(group.opening))
        except RayError as error:
            return self._replace_actor(group, number + 1, error, attempts - 1)

    def _replace_actor(
        self, group: _ShardGroup, number: int, error: RayError, attempts: int = MAX_ATTEMPTS
    ) -> _ShardGroup:
        """Starts another actor for a group, and waits until its shards are open."""
        logger.warning("a search actor was lost: %s", first_line(error))
        ray.kill(group.actor)  # it may be alive without answering
        return self._wait_until_open(self._start_group(group.names, number), number, attempts)


def _node_of_each_slot() -> list[str]:
    """Returns the id of the node of each CPU slot: each node appears as often as it has slots."""
    return [node for node, count in slots_by_node("cpu").items() for _ in range(count)]


def _get_last_result(reference: Any) -> Any:
    """Waits for a result at the last attempt: raises `ClusterUnavailable` if the actor has died."""
    try:
        return get_result(reference)
    except RayError as error:
        raise ClusterUnavailable(
            f"the actors that search the index keep dying: {first_line(error)}"
        ) from error


def split_shards(shards: Sequence[ShardEntry], groups: int) -> list[list[str]]:
    """Splits shards into at most `groups` runs of about equally many rows, and returns the names in each run."""
    rows = sum(entry.rows for entry in shards)

    def find_group(entry: ShardEntry) -> int:
        return (2 * entry.first_row + entry.rows) * groups // (2 * rows)

    return [[entry.name for entry in run] for _, run in groupby(shards, find_group)]


def merge_results(results: Sequence[SearchResult], request: SearchRequest) -> SearchResult:
    """Merges the results of one request from several runs of shards, in the order of the runs.

    Hits with equal scores keep the order of their shards.
    """

    def merge_best(hits_by_run: Sequence[Sequence[Hit] | None], sign: int) -> list[Hit] | None:
        if request.direction not in ("both", "proponents" if sign > 0 else "opponents"):
            return None
        hits = sorted(
            (hit for run in hits_by_run for hit in run or ()), key=lambda hit: -sign * hit.row.score
        )
        if request.group_by:
            best: dict[str, Hit] = {}
            for hit in hits:
                best.setdefault(hit.row.chunk.document if hit.row.chunk else hit.row.id, hit)
            hits = list(best.values())
        return [
            replace(hit, row=hit.row.model_copy(update={"rank": rank}))
            for rank, hit in enumerate(hits[: request.top_k], start=1)
        ]

    return SearchResult(
        proponents=merge_best([result.proponents for result in results], 1),
        opponents=merge_best([result.opponents for result in results], -1),
        background_scores=np.concatenate(
            [np.empty(0, np.float32), *(result.background_scores for result in results)]
        ),
        rows=sum(result.rows for result in results),
    )
