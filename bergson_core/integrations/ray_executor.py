"""Builds and searches shards on a Ray cluster. Ray is imported on first use."""

from collections.abc import Generator, Sequence
from dataclasses import dataclass
from pathlib import Path

from bergson_core.data.documents import Documents
from bergson_core.indexing.shard_builder import ShardBuilder, ShardStep, ShardTask
from bergson_core.search.searcher import Searcher
from bergson_core.storage.manifest import Manifest


@dataclass(frozen=True)
class RayExecutor:
    """Builds and searches shards on the machines of a Ray cluster.

    It uses the cluster at the address `RAY_ADDRESS`, or else one that runs on this machine, or else a new one that it
    starts on this machine. All machines of the cluster must see the directory of the index and the files of the model
    under the same paths; see docs/scaling.md. The rows are byte-identical to those of `LocalExecutor`.

    >>> build_index(spec, "facts", executor=RayExecutor())
    >>> AttributionIndex.open("facts", executor=RayExecutor())
    """

    def prepare(self) -> None:
        """Connects to the cluster.

        Raises:
            ClusterUnavailable: Ray is not installed, or no cluster answers.
        """
        from bergson_core.integrations.ray_cluster import connect

        connect()

    def run_tasks(
        self, builder: ShardBuilder, documents: Documents, tasks: Sequence[ShardTask]
    ) -> Generator[ShardStep, None, None]:
        """Builds the shards of `tasks` in actors, and yields each of their steps. The steps of one shard come in order.

        Args:
            builder: Builds a single shard. Each actor creates an equal builder for itself.
            documents: All documents of the build. An actor is sent those of its shard.
            tasks: The shards to build.

        Raises:
            ClusterUnavailable: The cluster has no room for an actor, or several actors died doing the same work.
            InvalidInput: A machine does not see the same files as this one.
        """
        from bergson_core.integrations.ray_shard_builder import build_shards_on_cluster

        yield from build_shards_on_cluster(builder, documents, tasks)

    def open_searcher(self, root: Path, manifest: Manifest) -> Searcher:
        """Opens the shards of the index in the directory `root` in actors.

        Raises:
            IndexCorrupt: A file that all shards need is damaged.
            ClusterUnavailable: Ray is not installed, no cluster answers, or the actors keep dying.
        """
        from bergson_core.integrations.ray_searcher import RaySearcher

        return RaySearcher(root, manifest)
