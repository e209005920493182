"""Removes what jobs have left in the data directory whose worker was killed, or whose queue was lost.

A job that ends removes its own files, whichever worker it ends in. What is left for this module is known to be unused:
by a lock that no process holds any more, or because no job has the index and nothing was written for long. What is
published is never touched, nor what once was and has lost its manifest, nor a directory with files that no build
writes.
"""

import logging
import os
import time
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Final

from bergson_core.storage.deletion import remove_deleted
from bergson_core.storage.layout import APPEND_DIRECTORY_PREFIX
from bergson_core.storage.manifest import MANIFEST_FILE
from bergson_core.storage.unfinished_builds import is_abandoned_build
from bergson_core.utils.file_locks import remove_if_unused
from bergson_core.utils.scratch_directories import remove_dead_scratch_directories
from worker.process.job_handlers import discard_unfinished
from worker.settings import Settings

logger = logging.getLogger(__name__)

_TEMPORARY_S: Final = 3600.0
"""Age in seconds from which a temporary file is taken to be left: a process replaces a small file in far less time."""


def list_index_directories(settings: Settings) -> list[Path]:
    """Returns the directories of all indexes, whether published or not."""
    try:
        return [
            Path(entry.path)
            for entry in os.scandir(settings.indexes_dir)
            if not entry.name.startswith(".") and entry.is_dir(follow_symlinks=False)
        ]
    except FileNotFoundError:
        return []


def remove_leftovers(settings: Settings, idle: Iterable[Path]) -> None:
    """Removes files and directories that no process uses and no job will use.

    Args:
        settings: The data directory, and for how long an unfinished build is kept.
        idle: Directories of indexes that no queued or running job has.
    """
    remove_dead_scratch_directories()
    remove_deleted(settings.indexes_dir)
    _remove_temporary_files(settings.data_dir)
    for path in _iter_directory(settings.uploads_dir):
        if (not path.name.startswith(".") or _age_s(path) > _TEMPORARY_S) and remove_if_unused(path):
            logger.info("removed %s, the documents of a job that has ended", path)
    for directory in idle:
        if (directory / MANIFEST_FILE).exists():
            _remove_temporary_files(directory)
            is_left = any(directory.glob(f"{APPEND_DIRECTORY_PREFIX}*"))
        else:
            is_old = _age_s(directory, *directory.rglob("*")) > settings.keep_jobs_s
            is_left = is_old and is_abandoned_build(directory)
        if is_left:
            discard_unfinished(directory)


def _remove_temporary_files(directory: Path) -> None:
    for path in directory.glob(".*.tmp"):
        if path.is_file() and _age_s(path) > _TEMPORARY_S:
            path.unlink(missing_ok=True)


def _iter_directory(directory: Path) -> Iterator[Path]:
    with suppress(FileNotFoundError):
        yield from directory.iterdir()


def _age_s(*paths: Path) -> float:
    """Returns how many seconds ago the latest of `paths` was written; files that are gone do not count."""
    written_at = 0.0
    for path in paths:
        with suppress(FileNotFoundError):
            written_at = max(written_at, path.lstat().st_mtime)
    return time.time() - written_at
