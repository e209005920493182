"""Files of an index: written durably, checked against the manifest, mapped into memory. No torch here.

<index>/.checked.json   for each file its sha256, and size, time and inode when it was last known to have it

A file that is as it was when it was last checked is not read again, so that an index opens at once whatever its size;
`check_files` with `again` reads every byte.
"""

import json
import os
import shutil
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

from bergson_core.errors import IndexCorrupt
from bergson_core.storage.manifest import FileEntry, Manifest
from bergson_core.utils.atomic_files import file_sha256, fsync_path, write_atomically

_CHECKED: Final = ".checked.json"
APPENDING: Final = ".appending-"
"""How the directories begin that appends read streams into."""


def file_entry(path: Path, root: Path | None = None) -> FileEntry:
    """Size and sha256 of a file, named below `root`."""
    name = str(path.relative_to(root)) if root else path.name
    return FileEntry(path=name, bytes=path.stat().st_size, sha256=file_sha256(path))


def find_damaged_files(
    root: Path, files: Iterable[FileEntry], *, again: bool = False
) -> list[tuple[FileEntry, str]]:
    """Each file that is missing, cut or altered, and what is wrong with it.

    Those that have not changed since they were last found good are not read, unless `again`.
    """
    known = {} if again else _known(root)
    wrong, good = [], {}
    for entry in files:
        path = f"{root}/{entry.path}"  # of thousands: a Path takes ten times as long
        try:
            stamp = _stamp(path, entry)
        except OSError:
            wrong.append((entry, f"{path} is missing"))
            continue
        if stamp[1] != entry.bytes:
            wrong.append((entry, f"{path} has {stamp[1]} bytes, and the manifest says {entry.bytes} bytes"))
        elif known.get(entry.path) != stamp and file_sha256(Path(path)) != entry.sha256:
            wrong.append((entry, f"{path} was altered: its sha256 is not the one in the manifest"))
        else:
            good[entry.path] = stamp
    if not good.items() <= known.items():
        with suppress(OSError):  # of a reader who may not write here
            _write_known(root, _known(root) | good)
    return wrong


def require_intact(root: Path, files: Iterable[FileEntry]) -> None:
    """Raises `IndexCorrupt` where a file is missing, or is not the one that was written."""
    if wrong := find_damaged_files(root, files):
        raise IndexCorrupt(f"{wrong[0][1]}; restore it from a copy or build the index again")


def flush_files(root: Path, files: Iterable[FileEntry]) -> None:
    """Flushes these files and their directories to disk, and notes that they are as they were written."""
    files = list(files)
    paths = [root / entry.path for entry in files]
    for path in (*paths, *{path.parent for path in paths}):
        fsync_path(path)
    _write_known(root, _known(root) | {entry.path: _stamp(f"{root}/{entry.path}", entry) for entry in files})


def _stamp(path: str, entry: FileEntry) -> list[Any]:
    stat = os.stat(path)
    return [entry.sha256, stat.st_size, stat.st_mtime_ns, stat.st_ino]


def _known(root: Path) -> dict[str, list[Any]]:
    try:
        known = json.loads((root / _CHECKED).read_text())
    except (OSError, ValueError):
        return {}
    return known if isinstance(known, dict) else {}


def _write_known(root: Path, known: dict[str, list[Any]]) -> None:
    there = {name: stamp for name, stamp in known.items() if (root / name).is_file()}
    write_atomically(root / _CHECKED, json.dumps(there).encode())


def remove_unpublished_files(root: Path, manifest: Manifest) -> None:
    """Removes what a build, append or compaction left that the index does not consist of."""
    kept = manifest.all_files().keys()
    for path in root.glob(f"{APPENDING}*"):
        shutil.rmtree(path)
    for part in ("shards", "search", "profiles"):
        for path in sorted((root / part).rglob("*"), reverse=True):
            if path.is_file() and str(path.relative_to(root)) not in kept:
                path.unlink()
            elif path.is_dir() and not any(path.iterdir()):
                path.rmdir()
