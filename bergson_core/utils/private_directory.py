"""Directories whose files are nobody else's business: created for their owner alone, and left as they are otherwise."""

import stat
from pathlib import Path

from bergson_core.errors import InvalidInput
from bergson_core.utils.disk_errors import translate_disk_errors


def prepare_private_directory(path: Path) -> str | None:
    """Creates a directory that only this user may enter, unless it exists.

    A directory that exists keeps its mode, since whoever created it may have meant that.

    Returns:
        A warning if every user of this machine may read in the directory, else None.

    Raises:
        InvalidInput: There is a file in its place.
        DiskFull: There is no room for the directory.
        ReadOnly: It may not be created.
    """
    try:
        with translate_disk_errors(path):
            path.mkdir(mode=0o700, parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as error:
        raise InvalidInput(
            f"{path}: expected a directory, or a path that does not exist; got a file"
        ) from error
    if not _is_open_to_others(path):
        return None
    return f"every user of this machine may read {path}, with the texts of documents in it: run `chmod o-rwx {path}`"


def _is_open_to_others(path: Path) -> bool:
    """Returns whether users who are neither the owner nor in the group may enter a directory and all that lead to it.

    A mode for the group is not looked at: nobody gives a directory a group by accident.
    """
    path = path.resolve()
    return all(directory.stat().st_mode & stat.S_IXOTH for directory in (path, *path.parents))
