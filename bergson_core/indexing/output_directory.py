"""Guards the directory of an index against other writers: its lock, and the stamps of an unfinished build.

Files:
    <index>/.lock             held while a process writes; the kernel releases it when the process dies
    <index>/building.json     {"spec": fingerprint of the build in progress, "settings": its spec, "date": of its first
                              run}; removed when the index is published
    <index>/statistics/done   a sealed `StatisticsStamp`: the build that the statistics belong to; written after them
"""

import json
import logging
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, date, datetime
from pathlib import Path

from bergson_core.data.streaming import STREAMED_FILE
from bergson_core.errors import IndexBusy, IndexCorrupt, IndexExists, IndexNotFound
from bergson_core.schemas.base import ResultModel
from bergson_core.schemas.build import BuildSpec
from bergson_core.schemas.differences import Difference, find_differences
from bergson_core.storage.index_lock import find_hung_takedown, lock_index
from bergson_core.storage.layout import BUILD_STAMP_FILE, INDEX_FILES, LOCK_FILE
from bergson_core.storage.locations import locate_sources, sources_inside
from bergson_core.storage.manifest import read_manifest
from bergson_core.utils.atomic_files import file_sha256, write_durably
from bergson_core.utils.disk_errors import translate_disk_errors
from bergson_core.utils.sealed_json import seal, unseal

logger = logging.getLogger(__name__)


class StatisticsStamp(ResultModel):
    """What the statistics of a build belong to."""

    build: str
    """The build's `rows_fingerprint`."""
    budget_tokens: int
    """The maximum number of tokens in a batch, padding included."""
    files: dict[str, str] = {}
    """Path in the index of each file of the statistics → its sha256. Empty in an index of release 0.1.0."""


@contextmanager
def index_write_lock(root: Path) -> Iterator[None]:
    """Keeps all other writers out of the directory of an index while the context is open.

    Args:
        root: The directory of the index. It must exist.

    Raises:
        IndexBusy: Another process is writing to the index, or hangs in a takedown.
        DiskFull: The disk is full.
        ReadOnly: The directory may not be written to.
        DiskFailed: The disk reports an error.
    """
    with translate_disk_errors(root), lock_index(root):
        if holder := find_hung_takedown(root):
            raise IndexBusy(
                f"{holder} has been in a takedown of {root} for long, and nothing can be published meanwhile: continue "
                "or end that process"
            )
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


def write_statistics_stamp(output: Path, build: str, budget_tokens: int) -> None:
    """Records that the statistics are complete, and what they belong to; see `StatisticsStamp`."""
    paths = sorted(
        path for part in ("statistics", "profiles") for path in (output / part).rglob("*") if path.is_file()
    )
    files = {str(path.relative_to(output)): file_sha256(path) for path in paths}
    stamp = StatisticsStamp(build=build, budget_tokens=budget_tokens, files=files)
    write_durably(statistics_stamp_path(output), seal(stamp.model_dump_json(indent=1)))


def read_statistics_stamp(output: Path) -> StatisticsStamp:
    """Returns what the statistics belong to.

    Raises:
        IndexCorrupt: The stamp is missing or was altered.
    """
    path = statistics_stamp_path(output)
    try:
        return StatisticsStamp.model_validate_json(unseal(path.read_bytes()))
    except (FileNotFoundError, ValueError) as error:
        raise IndexCorrupt(
            f"{path} is missing or was altered ({error}); restore it from a copy, or build the index again"
        ) from error


def find_finished_statistics(output: Path, build: str) -> StatisticsStamp | None:
    """Returns the stamp of the statistics that an interrupted run has finished, or None.

    Shards that were made with statistics that have been damaged since are removed: the statistics are fitted anew, and
    perhaps in batches of another size.

    Args:
        output: The directory of the index.
        build: The build's `rows_fingerprint`.
    """
    if not statistics_stamp_path(output).is_file():
        return None
    try:
        stamp = read_statistics_stamp(output)
        if stamp.build != build:
            return None
        if all(file_sha256(output / path) == sha256 for path, sha256 in stamp.files.items()):
            return stamp
    except (FileNotFoundError, IndexCorrupt):
        pass
    logger.warning("%s: the statistics of the unfinished build are damaged; it starts again", output)
    shutil.rmtree(output / "shards", ignore_errors=True)
    return None


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
