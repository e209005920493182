"""Deletes an index, or the files in its directory that do not belong to it."""

import shutil
from pathlib import Path
from uuid import uuid4

from filelock import FileLock, Timeout

from bergson_core.errors import IndexBusy, IndexNotFound
from bergson_core.storage.layout import APPEND_DIRECTORY_PREFIX, LOCK_FILE
from bergson_core.storage.manifest import MANIFEST_FILE, Manifest
from bergson_core.utils.disk_errors import translate_disk_errors

_DELETED_PREFIX = ".deleted-"


def delete_index(index: str | Path) -> None:
    """Deletes a published index.

    The directory is renamed first, so that no reader finds the index from that moment on. Directories that a killed
    call has renamed but not removed are removed as well.

    Args:
        index: Directory of the index.

    Raises:
        IndexNotFound: No index is published there.
        IndexBusy: Another process is writing to the index.
        ReadOnly: The directory of the index may not be written to.
    """
    root = Path(index)
    if not (root / MANIFEST_FILE).is_file():
        raise IndexNotFound.for_name(root.name)
    try:
        with translate_disk_errors(root.parent), FileLock(root / LOCK_FILE, timeout=0):
            root.rename(root.with_name(f"{_DELETED_PREFIX}{uuid4().hex}"))
    except Timeout:
        raise IndexBusy(f"{root.name} is being written: wait for its job, or cancel it") from None
    for directory in root.parent.glob(f"{_DELETED_PREFIX}*"):
        shutil.rmtree(directory, ignore_errors=True)


def remove_unpublished_files(root: Path, manifest: Manifest) -> None:
    """Removes the files that a build, append or compaction left in an index and that its manifest does not list.

    Args:
        root: Directory of the index. The caller holds its lock.
        manifest: The published manifest.
    """
    published = manifest.all_files().keys()
    for path in root.glob(f"{APPEND_DIRECTORY_PREFIX}*"):
        shutil.rmtree(path)
    for part in ("shards", "search", "profiles"):
        for path in sorted((root / part).rglob("*"), reverse=True):
            if path.is_file() and str(path.relative_to(root)) not in published:
                path.unlink()
            elif path.is_dir() and not any(path.iterdir()):
                path.rmdir()
