"""Builds the shards of an index, and keeps those that an earlier run has finished."""

import logging
from collections.abc import Sequence
from contextlib import closing

from bergson_core.data.documents import Documents
from bergson_core.indexing.executor import Executor
from bergson_core.indexing.shard_builder import ShardBuilder, ShardTask
from bergson_core.shards.shard_writer import find_finished_shard, remove_unaccepted_shards
from bergson_core.storage.manifest import ShardEntry
from bergson_core.utils.progress import ConfirmCallback, ProgressCallback, StageProgress

logger = logging.getLogger(__name__)


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
