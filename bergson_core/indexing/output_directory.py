"""TODO"""

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from bergson_core.data.streaming import STREAMED_FILE as STREAMED
from bergson_core.errors import IndexBusy, IndexExists, IndexNotFound
from bergson_core.schemas.build import BuildSpec
from bergson_core.shards.shard import translate_disk_errors
from bergson_core.storage.layout import (
    BUILD_STAMP_FILE,
    LOCK_FILE,
)
from bergson_core.storage.manifest import read_manifest


@contextmanager
def index_write_lock(root: Path) -> Iterator[None]:
    """Keeps all other writers out of the index in directory `root`.

    Raises `IndexBusy` where one is there, and `DiskFull` where there is no room for what is written here.
    """
    try:
        with FileLock(root / LOCK_FILE, timeout=0), translate_disk_errors(root):
            yield
    except Timeout:
        raise IndexBusy(f"{root} is being written by another process; wait for it or stop it") from None


def require_free_directory(output: Path, spec: BuildSpec) -> None:
    """Raises `IndexExists` unless `output` is absent, empty, or this very build."""
    if output.exists() and not output.is_dir():
        raise IndexExists(f"{output} is a file; expected a new directory")
    try:
        own, other = spec.fingerprint(), read_manifest(output).fingerprint
    except IndexNotFound:
        stamp = output / BUILD_STAMP_FILE
        if not stamp.is_file():
            if output.exists() and any(path.name != LOCK_FILE for path in output.iterdir()):
                raise IndexExists(
                    f"{output} is not empty and holds no index; expected a new directory"
                ) from None
            return
        own, other = spec.rows_fingerprint(), json.loads(stamp.read_text())["spec"]
    if other != own:
        raise IndexExists(
            f"{output} holds an index of another model, dataset or settings; choose another directory"
        )


def _forget(output: Path, fresh: bool) -> None:
    """Removes what was read of documents that are wrong, so that they can be put right, and a `fresh` directory."""
    for name in (BUILD_STAMP_FILE, STREAMED):
        (output / name).unlink(missing_ok=True)
    if fresh:
        shutil.rmtree(output)
