"""Builds the shards of an index, and keeps those that an earlier run has finished and that are still intact."""

import logging
from collections.abc import Sequence
from contextlib import closing
from functools import partial
from pathlib import Path

from bergson_core.data.documents import Documents
from bergson_core.indexing.executor import Executor
from bergson_core.indexing.shard_builder import ShardBuilder, ShardTask
from bergson_core.schemas.results import Progress
from bergson_core.shards.shard_writer import find_finished_shard, remove_unaccepted_shards
from bergson_core.storage.integrity import find_damaged_files
from bergson_core.storage.manifest import ShardEntry
from bergson_core.utils.background import run_in_thread
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

    A finished shard of which a file was damaged since is built again.

    Args:
        builder: Builds a single shard.
        documents: All documents of the build.
        tasks: The shards, in their order in the index.
        report: Called with the progress after every step.
        confirm: Called before each new shard is accepted.
        executor: Where the shards are built.
    """
    remove_unaccepted_shards(builder.output)
    total = sum(len(task.numbers) for task in tasks)
    entries = run_in_thread(
        partial(_find_intact_shards, builder.output, tasks),
        lambda: report(Progress(stage="gradients", total=total)),
    )
    progress = StageProgress("gradients", total)
    progress.skip(sum(entry.rows for entry in entries.values()))
    report(progress.now())
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


def _find_intact_shards(output: Path, tasks: Sequence[ShardTask]) -> dict[str, ShardEntry]:
    """Returns the finished shards whose files are all as they were written, by name. It reads every byte of them.

    `.checked.json` then has these files as they are now, so that a later change is noticed before the publication.
    """
    finished = [
        shard
        for task in tasks
        if (shard := find_finished_shard(output, task.name, task.position, len(task.numbers))) is not None
    ]
    entries = {shard.entry.name: shard.entry for shard in finished}
    name_by_path = {file.path: shard.entry.name for shard in finished for file in shard.files}
    files = [file for shard in finished for file in shard.files]
    for file, problem in find_damaged_files(output, files, reread=True):
        name = name_by_path[file.path]
        if entries.pop(name, None):
            logger.warning("the shard %s of the unfinished build is made again: %s", name, problem)
    return entries
