"""Guards the directory of an index against other writers: its lock, and the stamps of an unfinished build.

Files:
    <index>/.lock             held while a process writes; the kernel releases it when the process dies
    <index>/building.json     {"spec": fingerprint of the build in progress, "settings": its spec, "date": of its first
                              run}; removed when the index is published
    <index>/statistics/done   names the build that the statistics belong to; written after them (`build.py`)
"""

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, date, datetime
from pathlib import Path

from bergson_core.data.streaming import STREAMED_FILE
from bergson_core.errors import IndexExists, IndexNotFound
from bergson_core.schemas.build import BuildSpec
from bergson_core.schemas.differences import Difference, find_differences
from bergson_core.shards.disk_errors import translate_disk_errors
from bergson_core.storage.index_lock import lock_index
from bergson_core.storage.layout import BUILD_STAMP_FILE, INDEX_FILES, LOCK_FILE
from bergson_core.storage.locations import locate_sources, sources_inside
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
    with lock_index(root), translate_disk_errors(root):
        yield


def require_free_directory(output: Path, spec: BuildSpec) -> None:
    """Checks that `output` does not exist, is empty, or holds this very build, finished or not.

    Raises:
        IndexExists: `output` is a file, or a directory that holds something else.
    """
    if output.exists() and not output.is_dir():
        raise IndexExists(f"{output} is a file; expected a new directory")
    # What is stored is JSON, in which a date or a decimal of a document is text.
    spec = BuildSpec.model_validate_json(locate_sources(spec).model_dump_json())
    try:
        differences = find_differences(locate_sources(read_manifest(output).spec), spec)
    except IndexNotFound:
        if not (output / BUILD_STAMP_FILE).is_file():
            _require_no_other_files(output, spec)
            return
        differences = _find_differences_of_unfinished(output, spec)
    if differences:
        settings = "; ".join(
            f"{path} is {before} there and {after} here" for path, before, after in differences
        )
        raise IndexExists(
            f"{output} holds an index of another model, dataset or settings ({settings}); choose another directory"
        )


def _require_no_other_files(output: Path, spec: BuildSpec) -> None:
    """Raises `IndexExists` unless `output` is empty, but for the model and the dataset of the build.

    Temporary files of a build that was killed before it wrote its stamp do not count.
    """
    names = {path.name for path in output.iterdir()} if output.exists() else set()
    names -= {name for name in names if name.startswith(".") and name.endswith(".tmp")}
    if other := names - {LOCK_FILE} - (sources_inside(spec, output) - INDEX_FILES):
        raise IndexExists(
            f"{output} is not empty and holds no index; expected a new directory, found {min(other)!r}"
        )


def _find_differences_of_unfinished(output: Path, spec: BuildSpec) -> list[Difference]:
    """Returns the settings in which the unfinished build in `output` differs, except how its rows are searched."""
    try:
        stamp = json.loads((output / BUILD_STAMP_FILE).read_text())
        fingerprint = stamp["spec"]
    except (ValueError, TypeError, KeyError):
        return [("the unfinished build", "unreadable", "another")]
    if fingerprint == spec.rows_fingerprint():
        return []
    if "settings" not in stamp:
        return [("the unfinished build", "of release 0.1.0", "of another release or other settings")]
    started = locate_sources(BuildSpec.model_validate(stamp["settings"]))
    return find_differences(started, spec.model_copy(update={"search": started.search}))


def write_build_stamp(output: Path, spec: BuildSpec) -> date:
    """Records in `output` which build is in progress there, for `require_free_directory`.

    Returns:
        The date (UTC) on which the build was first started, which a build that is resumed keeps.
    """
    path = output / BUILD_STAMP_FILE
    previous = json.loads(path.read_text()) if path.is_file() else {}
    started_on = previous.get("date") or datetime.now(UTC).date().isoformat()
    stamp = {"spec": spec.rows_fingerprint(), "settings": spec.model_dump(mode="json"), "date": started_on}
    write_durably(path, json.dumps(stamp).encode())
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
