"""Checks the files of an index against its manifest.

<index>/.checked.json   for each file: sha256, and size, modification time and inode when the file last had that sha256

A file whose size, time and inode are as they were at its last check is not read again, so that an index opens at once
whatever its size. `find_damaged_files` with `reread` reads every byte.
"""

import json
import logging
import os
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path
from typing import Any

from bergson_core.errors import IndexCorrupt
from bergson_core.storage.layout import CHECKED_FILE
from bergson_core.storage.manifest import FileEntry
from bergson_core.utils.atomic_files import file_sha256, fsync_path, write_atomically
from bergson_core.utils.background import stop_if_abandoned
from bergson_core.utils.disk_errors import DISK_ERRORS

logger = logging.getLogger(__name__)


def make_file_entry(path: Path, root: Path | None = None) -> FileEntry:
    """Returns the manifest entry of a file: its size, its sha256, and its path below `root` or else its name."""
    name = str(path.relative_to(root)) if root else path.name
    return FileEntry(path=name, bytes=path.stat().st_size, sha256=file_sha256(path))


def find_damaged_files(
    root: Path, files: Iterable[FileEntry], *, reread: bool = False
) -> list[tuple[FileEntry, str]]:
    """Finds the files of an index that are missing, cut or altered.

    Files that were found intact are noted in `.checked.json`.

    Args:
        root: Directory of the index.
        files: Entries of the files to check.
        reread: Read every file, even if it has not changed since it was last found intact.

    Returns:
        The entry of each damaged file, and what is wrong with the file.
    """
    checked = {} if reread else _read_checked(root)
    damaged, intact = [], {}
    for entry in files:
        # There may be thousands of files, and a `Path` takes ten times as long.
        path = f"{root}/{entry.path}"
        try:
            stop_if_abandoned()
            stamp = _stamp(path, entry)
            if stamp[1] != entry.bytes:
                problem = f"has {stamp[1]} bytes, and the manifest says {entry.bytes} bytes"
            elif checked.get(entry.path) != stamp and file_sha256(Path(path)) != entry.sha256:
                problem = "was altered: its sha256 is not the one in the manifest"
            else:
                intact[entry.path] = stamp
                continue
        except FileNotFoundError:
            problem = "is missing"
        except OSError as error:
            problem = f"cannot be read: {error.strerror}"
        damaged.append((entry, f"{path} {problem}"))
    if not intact.items() <= checked.items():
        try:
            _write_checked(root, _read_checked(root) | intact)
        except (OSError, *DISK_ERRORS) as error:  # a reader may not be allowed to write here
            cause = error.__cause__ or error
            _log_unwritten(root, getattr(cause, "strerror", None) or str(cause))
    return damaged


def flush_files(root: Path, files: Iterable[FileEntry]) -> None:
    """Flushes new files and their directories to disk, and notes in `.checked.json` that the files are intact.

    A file that is noted there already was written by an earlier run, whose files this run has checked. If it has
    changed since, it is read again. The others were written by this run.

    Raises:
        IndexCorrupt: A file is damaged.
    """
    files = list(files)
    checked = _read_checked(root)
    if damaged := find_damaged_files(root, [entry for entry in files if entry.path in checked]):
        _, problem = damaged[0]
        raise IndexCorrupt(
            f"{problem}; it was intact when this run began: run the same command again to make it again"
        )
    paths = [root / entry.path for entry in files]
    for path in (*paths, *{path.parent for path in paths}):
        fsync_path(path)
    stamps = {entry.path: _stamp(f"{root}/{entry.path}", entry) for entry in files}
    _write_checked(root, _read_checked(root) | stamps)


@lru_cache(maxsize=256)
def _log_unwritten(root: Path, reason: str) -> None:
    """Logs once that the files of an index will be read again by the next process that opens it."""
    logger.warning(
        "%s cannot be written, so that each process reads all files of the index: %s",
        root / CHECKED_FILE,
        reason,
    )


def _stamp(path: str, entry: FileEntry) -> list[Any]:
    stat = os.stat(path)
    return [entry.sha256, stat.st_size, stat.st_mtime_ns, stat.st_ino]


def _read_checked(root: Path) -> dict[str, list[Any]]:
    try:
        checked = json.loads((root / CHECKED_FILE).read_text())
    except (OSError, ValueError, RecursionError):
        return {}
    return checked if isinstance(checked, dict) else {}


def _write_checked(root: Path, checked: dict[str, list[Any]]) -> None:
    present = {path: stamp for path, stamp in checked.items() if (root / path).is_file()}
    write_atomically(root / CHECKED_FILE, json.dumps(present).encode())
