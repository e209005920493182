"""Tells what an unfinished build has left from an index that has lost its manifest, and from what a user put there."""

import re
from pathlib import Path
from typing import Final

from bergson_core.storage.layout import BUILD_STAMP_FILE, CHECKED_FILE, LOCK_FILE, TAKEDOWN_LOG_FILE
from bergson_core.storage.manifest import MANIFEST_FILE

_BUILD_FILES: Final = re.compile(
    r"\.lock|\.takedowns\.lock|\.checked\.json|building\.json|documents\.arrow|takedowns\.(jsonl|head\.json)"
    r"|statistics/(done|processor\.json|normalizers\.safetensors)"
    r"|profiles/default/(preconditioner\.safetensors|\d+\.lengths\.bin)"
    r"|search/\w+/\d+\.faiss"
    r"|shards/\d+/(gradients\.bin|scales\.bin|rows\.arrow|second_moment\.safetensors|shard\.json)"
)
"""Paths of the files that a build writes before its manifest."""
_TEMPORARY: Final = re.compile(r"(.+/)?\.[^/]+\.tmp(/.+)?")
"""Paths of temporary files, and of files in temporary directories, of a build that was killed."""


def is_unfinished_build(directory: Path) -> bool:
    """Returns whether a directory may give way to a build: it holds what an unfinished one has left.

    With the stamp of a build it does, unless a takedown was recorded, which only an index can have. Without the stamp
    it does if there are only files of a build, and none that are written when an index is published.
    """
    if not directory.is_dir() or (directory / MANIFEST_FILE).exists() or _has_takedowns(directory):
        return False
    if (directory / BUILD_STAMP_FILE).is_file():
        return True
    paths = _file_paths(directory)
    return _are_of_build(paths) and not any(
        path == CHECKED_FILE or path.startswith(("takedowns.", "search/")) for path in paths
    )


def is_abandoned_build(directory: Path) -> bool:
    """Returns whether a directory may be removed unasked: it has the stamp of a build, and only files of builds.

    So may one that has a lock and temporary files alone, which a build leaves that was killed before its stamp.
    """
    if not is_unfinished_build(directory):
        return False
    paths = _file_paths(directory)
    is_begun = BUILD_STAMP_FILE in paths or all(
        path == LOCK_FILE or _TEMPORARY.fullmatch(path) for path in paths
    )
    return is_begun and _are_of_build(paths)


def _has_takedowns(directory: Path) -> bool:
    log = directory / TAKEDOWN_LOG_FILE
    return log.exists() and log.stat().st_size > 0


def _are_of_build(paths: list[str]) -> bool:
    return all(_BUILD_FILES.fullmatch(path) or _TEMPORARY.fullmatch(path) for path in paths)


def _file_paths(directory: Path) -> list[str]:
    """Returns the paths below `directory` of everything in it that is no directory."""
    paths = (path for path in directory.rglob("*") if path.is_symlink() or not path.is_dir())
    return [str(path.relative_to(directory)) for path in paths]
