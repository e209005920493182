"""Guards the directory of an index against other writers: its lock, and the stamps of an unfinished build.

Files:
    <index>/.lock             held while a process writes; the kernel releases it when the process dies
    <index>/building.json     {"spec": fingerprint of the build in progress, "date": of its first run}; removed when
                              the index is published
    <index>/statistics/done   names the build that the statistics belong to; written after them (`build.py`)
"""

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, date, datetime
from pathlib import Path

from filelock import FileLock, Timeout

from bergson_core.data.streaming import STREAMED_FILE
from bergson_core.errors import IndexBusy, IndexExists, IndexNotFound
from bergson_core.schemas.build import BuildSpec
from bergson_core.shards.disk_errors import translate_disk_errors
from bergson_core.storage.layout import BUILD_STAMP_FILE, LOCK_FILE
from bergson_core.storage.manifest import read_manifest
from bergson_core.utils.atomic_files import write_durably


@contextmanager
def index_write_lock(root: Path) -> Iterator[None]:
    """Keeps all other writers out of the directory of an index while the context is open.

    Args:
        root: The directory of the index. It must exist.

    Raises:
        IndexBusy: Another process is writing to the index.
        DiskFull: The disk became full inside the context.
    """
    try:
        with FileLock(root / LOCK_FILE, timeout=0), translate_disk_errors(root):
            yield
    except Timeout:
        raise IndexBusy(f"{root} is being written by another process; wait for it or stop it") from None


def require_free_directory(output: Path, spec: BuildSpec) -> None:
    """Checks that `output` does not exist, is empty, or holds this very build, finished or not.

    Raises:
        IndexExists: `output` is a file, or a directory that holds something else.
    """
    if output.exists() and not output.is_dir():
        raise IndexExists(f"{output} is a file; expected a new directory")
    try:
        expected, present = spec.fingerprint(), read_manifest(output).fingerprint
    except IndexNotFound:
        stamp = output / BUILD_STAMP_FILE
        if not stamp.is_file():
            if output.exists() and any(path.name != LOCK_FILE for path in output.iterdir()):
                raise IndexExists(
                    f"{output} is not empty and holds no index; expected a new directory"
                ) from None
            return
        expected, present = spec.rows_fingerprint(), json.loads(stamp.read_text())["spec"]
    if present != expected:
        raise IndexExists(
            f"{output} holds an index of another model, dataset or settings; choose another directory"
        )


def write_build_stamp(output: Path, spec: BuildSpec) -> date:
    """Records in `output` which build is in progress there, for `require_free_directory`.

    Returns:
        The date (UTC) on which the build was first started, which a build that is resumed keeps.
    """
    path = output / BUILD_STAMP_FILE
    previous = json.loads(path.read_text()) if path.is_file() else {}
    started_on = previous.get("date") or datetime.now(UTC).date().isoformat()
    write_durably(path, json.dumps({"spec": spec.rows_fingerprint(), "date": started_on}).encode())
    return date.fromisoformat(started_on)


def statistics_stamp_path(output: Path) -> Path:
    """Returns the path of the file that is written once the statistics are complete."""
    return output / "statistics" / "done"


def remove_build_stamp(output: Path) -> None:
    """Removes the files that only an unfinished build needs: its stamp, and the documents read from a stream."""
    for name in (STREAMED_FILE, BUILD_STAMP_FILE):
        (output / name).unlink(missing_ok=True)


def remove_rejected_build(output: Path, *, is_new: bool) -> None:
    """Removes the files of a build whose input was invalid, so that the input can be corrected and built again.

    If the build created the directory (`is_new`), the directory is removed as well.
    """
    remove_build_stamp(output)
    if is_new:
        shutil.rmtree(output)
