"""Removes an index. No torch here."""

import shutil
from pathlib import Path
from uuid import uuid4

from filelock import FileLock, Timeout

from bergson_core.errors import IndexBusy, IndexNotFound
from bergson_core.storage.layout import LOCK_FILE
from bergson_core.storage.manifest import MANIFEST_FILE

_GRAVE = ".deleted-"


def delete_index(index: str | Path) -> None:
    """Removes the published index in directory `index`: no reader finds it from now on, and its bytes go.

    What a call that was killed has left goes too. Raises `IndexNotFound`, and `IndexBusy` while somebody writes there.
    """
    root = Path(index)
    if not (root / MANIFEST_FILE).is_file():
        raise IndexNotFound.named(root.name)
    try:
        with FileLock(root / LOCK_FILE, timeout=0):
            root.rename(root.with_name(f"{_GRAVE}{uuid4().hex}"))
    except Timeout:
        raise IndexBusy(f"{root.name} is being written: wait for its job, or cancel it") from None
    for grave in root.parent.glob(f"{_GRAVE}*"):
        shutil.rmtree(grave, ignore_errors=True)
