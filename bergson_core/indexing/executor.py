"""Where shards are built and searched: in this process, or on the machines of a cluster.

An executor decides where the work runs. The result does not depend on it: the rows are byte-identical.
"""

from collections.abc import Generator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from bergson_core.data.documents import Documents
from bergson_core.indexing.shard_builder import ShardBuilder, ShardStep, ShardTask
from bergson_core.search.local_searcher import LocalSearcher
from bergson_core.search.searcher import Searcher
from bergson_core.storage.manifest import Manifest


class Executor(Protocol):
    """Builds the shards of an index, and opens the shards of an index for search.

    `LocalExecutor` does so in this process, `RayExecutor` on a Ray cluster.
    """

    def prepare(self) -> None:
        """Checks, before a build starts, that shards can be built.

        Raises:
            ClusterUnavailable: There is no cluster to build them on.
        """
        ...

    def run_tasks(
        self, builder: ShardBuilder, documents: Documents, tasks: Sequence[ShardTask]
    ) -> Generator[ShardStep, None, None]:
        """Builds the shards of `tasks` and yields each of their steps. The steps of one shard come in order.

        Args:
            builder: Builds a single shard.
            documents: All documents of the build. Each task names the numbers of its own.
            tasks: The shards to build.

        Raises:
            ClusterUnavailable: The cluster has no room for the work, or has lost it too often.
        """
        ...

    def open_searcher(self, root: Path, manifest: Manifest) -> Searcher:
        """Opens the shards of the index in the directory `root`.

        Raises:
            IndexCorrupt: A file that all shards need is damaged.
            ClusterUnavailable: There is no cluster to hold the shards.
        """
        ...


@dataclass(frozen=True)
class LocalExecutor:
    """Builds and searches shards in this process."""

    def prepare(self) -> None:
        """Does nothing: this process is always available."""

    def run_tasks(
        self, builder: ShardBuilder, documents: Documents, tasks: Sequence[ShardTask]
    ) -> Generator[ShardStep, None, None]:
        """Builds the shards of `tasks`, one after the other, and yields each of their steps."""
        for task in tasks:
            yield from builder.build(task, documents.read(task.numbers))

    def open_searcher(self, root: Path, manifest: Manifest) -> Searcher:
        """Maps the shards of the index in the directory `root` into memory."""
        return LocalSearcher.open(root, manifest)
