"""Where shards are built and searched: in this process, or on the machines of a cluster.

An executor decides where the work runs. The result does not depend on it: the rows are byte-identical.
"""

import logging
from collections.abc import Generator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from bergson_core.data.documents import Documents
from bergson_core.indexing.shard_builder import ShardBuilder, ShardStep, ShardTask
from bergson_core.search.local_searcher import LocalSearcher
from bergson_core.search.searcher import Searcher
from bergson_core.shards.shard_writer import find_finished_shard, remove_unaccepted_shards
from bergson_core.storage.manifest import Manifest, ShardEntry
from bergson_core.utils.progress import ConfirmCallback, ProgressCallback, StageProgress

logger = logging.getLogger(__name__)


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


def build_shards(
    builder: ShardBuilder,
    documents: Documents,
    tasks: Sequence[ShardTask],
    report: ProgressCallback,
    confirm: ConfirmCallback,
    executor: Executor,
) -> list[ShardEntry]:
    """Builds the shards that no earlier run has finished, and returns the entries of all shards of `tasks`.

    Args:
        builder: Builds a single shard.
        documents: All documents of the build.
        tasks: The shards, in their order in the index.
        report: Called with the progress after every step.
        confirm: Called before each new shard is accepted.
        executor: Where the shards are built.
    """
    remove_unaccepted_shards(builder.output)
    finished = [
        find_finished_shard(builder.output, task.name, task.position, len(task.numbers)) for task in tasks
    ]
    entries = {entry.name: entry for entry in finished if entry is not None}
    progress = StageProgress("gradients", sum(len(task.numbers) for task in tasks))
    progress.skip(sum(entry.rows for entry in entries.values()))
    remaining = [task for task in tasks if task.name not in entries]
    with closing(executor.run_tasks(builder, documents, remaining)) as steps:
        for step in steps:
            if step.written is None:
                report(progress.advance(step.documents, step.tokens))
                continue
            if step.skipped_ids:
                logger.warning(
                    "no query can find these documents, whose gradients are not finite: %s",
                    list(step.skipped_ids),
                )
            confirm()
            entries[step.written.entry.name] = step.written.accept()
    return [entries[task.name] for task in tasks]
