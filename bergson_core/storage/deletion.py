"""Deletes an index, whatever state it is in, or the files in its directory that do not belong to it."""

import os
import shutil
from contextlib import nullcontext
from pathlib import Path
from typing import Final
from uuid import uuid4

from bergson_core.errors import IndexNotFound
from bergson_core.storage.behaviours import remove_unfinished_behaviours
from bergson_core.storage.index_lock import lock_index
from bergson_core.storage.layout import APPEND_DIRECTORY_PREFIX, CHECKED_FILE, INDEX_FILES
from bergson_core.storage.manifest import Manifest
from bergson_core.utils.disk_errors import translate_disk_errors

_DELETED_PREFIX: Final = ".deleted-"


def delete_index(index: str | Path) -> None:
    """Deletes an index, or what an unfinished build has left in its place: the whole directory.

    The directory is renamed first, so that no reader finds the index from that moment on, and so that a call which is
    killed leaves nothing under its name. What such calls have renamed but not removed is removed as well.

    Args:
        index: Directory of the index.

    Raises:
        IndexNotFound: There is nothing of this name.
        IndexBusy: Another process is writing to the index.
        ReadOnly: The directory of the index may not be written to.
    """
    root = Path(index)
    if not os.path.lexists(root):
        raise IndexNotFound.for_name(root.name)
    # What is a file or a link was put there by hand. A link is removed, and not what it leads to.
    is_directory = root.is_dir() and not root.is_symlink()
    with translate_disk_errors(root.parent), lock_index(root) if is_directory else nullcontext():
        root.rename(root.with_name(f"{_DELETED_PREFIX}{uuid4().hex}"))
    remove_deleted(root.parent)


def remove_deleted(directory: Path) -> None:
    """Removes what calls of `delete_index` in this parent directory have renamed but not removed."""
    for path in directory.glob(f"{_DELETED_PREFIX}*"):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def remove_unpublished_files(root: Path, manifest: Manifest) -> None:
    """Removes the files that a build, append or compaction left in an index and that its manifest does not list.

    Args:
        root: Directory of the index. The caller holds its lock.
        manifest: The published manifest.
    """
    # The words of documents are not listed, because queries write them after the manifest was written.
    published = {*manifest.all_files(), *(shard.words_path for shard in manifest.shards)}
    for path in root.glob(f"{APPEND_DIRECTORY_PREFIX}*"):
        shutil.rmtree(path)
    # Temporary files and directories of processes that were killed. Takedowns are recorded without this lock.
    for name in (*(name for name in INDEX_FILES if not name.startswith("takedowns.")), CHECKED_FILE):
        for path in root.glob(f".{name}.*"):
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
    remove_unfinished_behaviours(root)
    for part in ("shards", "search", "profiles", "words"):
        for path in sorted((root / part).rglob("*"), reverse=True):
            if path.is_file() and str(path.relative_to(root)) not in published:
                path.unlink()
            elif path.is_dir() and not any(path.iterdir()):
                path.rmdir()
