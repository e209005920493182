"""Shards made and searched by the machines of a Ray cluster (docs/scaling.md). Ray is imported on first use."""

from collections.abc import Generator, Sequence
from dataclasses import dataclass
from pathlib import Path

from bergson_core.data.dataset import Documents
from bergson_core.indexing.shard_builder import ShardBuilder, ShardStep, ShardTask
from bergson_core.search.searcher import Searcher
from bergson_core.storage.manifest import Manifest


@dataclass(frozen=True)
class RayExecutor:
    """Makes and searches shards on the cluster at `RAY_ADDRESS`, or on one that it starts on this machine."""

    def prepare(self) -> None:
        """Connects to the cluster.

        Raises:
            ClusterUnavailable: Ray is not installed, or no cluster answers.
        """
        from bergson_core.integrations.ray_cluster import connect

        connect()

    def make_shards(
        self, maker: ShardBuilder, documents: Documents, tasks: Sequence[ShardTask]
    ) -> Generator[ShardStep, None, None]:
        """Yields the steps of all shards as the actors make them; those of one shard come in order."""
        from bergson_core.integrations.ray_shard_builder import build_shards_on_cluster

        yield from build_shards_on_cluster(maker, documents, tasks)

    def open_searcher(self, root: Path, manifest: Manifest) -> Searcher:
        """Opens the shards in actors of the cluster."""
        from bergson_core.integrations.ray_searcher import RaySearcher

        return RaySearcher(root, manifest)
