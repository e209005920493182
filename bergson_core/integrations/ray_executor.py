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

    That is the cluster at the address `RAY_ADDRESS`, else one that runs on this machine, else a new one on this
    machine. All its machines have to see the directory of the index and the files of the model under the same paths;
    docs/scaling.md is the guide. The rows are those that this process would build.

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
            builder: What turns documents into a shard. Each actor makes the same one for itself.
            documents: All documents of the build; an actor is sent those of its shard.
            tasks: The shards to build.

        Raises:
            ClusterUnavailable: The cluster has no room for an actor, or several actors died of the same work.
            InvalidInput: A machine sees other files than this one.
        """
        from bergson_core.integrations.ray_shard_builder import build_shards_on_cluster

        yield from build_shards_on_cluster(builder, documents, tasks)

    def open_searcher(self, root: Path, manifest: Manifest) -> Searcher:
        """Opens the shards of the index in the directory `root` in actors.

        Raises:
            IndexCorrupt: A file that all shards need is damaged.
            ClusterUnavailable: Ray is not installed, no cluster answers, or the actors die.
        """
        from bergson_core.integrations.ray_searcher import RaySearcher

        return RaySearcher(root, manifest)
