"""Where the shards of an index are made and searched.

An executor changes where the work runs, never its result: the rows are byte-identical.
"""

import logging
from collections.abc import Generator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from bergson_core.data.dataset import Documents
from bergson_core.indexing.shard_builder import ShardBuilder, ShardStep, ShardTask
from bergson_core.search.local_searcher import LocalSearcher
from bergson_core.search.searcher import Searcher
from bergson_core.shards.shard import find_finished_shard, remove_unaccepted_shards
from bergson_core.storage.manifest import Manifest, ShardEntry
from bergson_core.utils.progress import ConfirmCallback, ProgressCallback, StageProgress

logger = logging.getLogger(__name__)


class Executor(Protocol):
    """Makes the shards of a build and opens the shards of an index for search."""

    def prepare(self) -> None:
        """Checks, before a build starts, that shards can be made.

        Raises:
            ClusterUnavailable: There is no cluster to make them.
        """
        ...

    def make_shards(
        self, maker: ShardBuilder, documents: Documents, tasks: Sequence[ShardTask]
    ) -> Generator[ShardStep, None, None]:
        """Yields every step of every shard of `tasks`. The steps of one shard come in order."""
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
    """Makes and searches shards in this process."""

    def prepare(self) -> None:
        """Does nothing: this process is always available."""

    def make_shards(
        self, maker: ShardBuilder, documents: Documents, tasks: Sequence[ShardTask]
    ) -> Generator[ShardStep, None, None]:
        """Yields every step of every shard of `tasks`, one shard after the other."""
        for task in tasks:
            yield from maker.build(task, documents.read(task.numbers))

    def open_searcher(self, root: Path, manifest: Manifest) -> Searcher:
        """Maps the shards of the index in the directory `root` into memory."""
        return LocalSearcher.open(root, manifest)


def build_shards(
    maker: ShardBuilder,
    documents: Documents,
    work: Sequence[ShardTask],
    report: ProgressCallback,
    confirm: ConfirmCallback,
    executor: Executor,
) -> list[ShardEntry]:
    """The shards of `work`, but for those that an earlier run has finished; `confirm` is asked before each is taken."""
    remove_unaccepted_shards(maker.output)
    finished = [find_finished_shard(maker.output, task.name, task.position, len(task.numbers)) for task in work]
    entries = {entry.name: entry for entry in finished if entry is not None}
    clock = StageProgress("gradients", sum(len(task.numbers) for task in work))
    clock.skip(sum(entry.rows for entry in entries.values()))
    left = [task for task in work if task.name not in entries]
    with closing(executor.make_shards(maker, documents, left)) as steps:
        for step in steps:
            if step.written is None:
                report(clock.advance(step.documents, step.tokens))
                continue
            if step.skipped_ids:
                logger.warning(
                    "gradients that are not finite; these documents can never be found: %s",
                    list(step.skipped_ids),
                )
            confirm()
            entries[step.written.entry.name] = step.written.accept()
    return [entries[task.name] for task in work]
