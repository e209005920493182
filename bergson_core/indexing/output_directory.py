"""Guards the directory of an index against other writers: its lock, and the stamps of an unfinished build.

Files:
    <index>/.lock             held while a process writes; the kernel releases it when the process dies
    <index>/building.json     a sealed `_BuildStamp`: the build in progress; removed when the index is published
    <index>/statistics/done   a sealed `StatisticsStamp`: the build that the statistics belong to; written after them
"""

import json
import logging
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, date, datetime
from pathlib import Path

from pydantic_core import from_json

from bergson_core.data.streaming import STREAMED_FILE
from bergson_core.errors import IndexBusy, IndexCorrupt, IndexExists, IndexNotFound, InvalidInput
from bergson_core.schemas.base import ResultModel
from bergson_core.schemas.build import BuildSpec
from bergson_core.schemas.differences import Difference, find_differences
from bergson_core.storage.index_lock import find_hung_takedown, lock_index
from bergson_core.storage.layout import BUILD_STAMP_FILE, INDEX_FILES, LOCK_FILE, REFERENCE_FILE
from bergson_core.storage.locations import locate_sources, sources_inside
from bergson_core.storage.manifest import InnerPath, read_manifest
from bergson_core.utils.atomic_files import file_sha256, write_durably
from bergson_core.utils.disk_errors import translate_disk_errors
from bergson_core.utils.sealed_json import seal, unseal

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class _BuildStamp:
    """Which build is in progress: the `rows_fingerprint` of its spec, its spec, and the date (UTC) of its first run.

    The last two are None in a stamp of release 0.1.0.
    """

    spec: str
    settings: BuildSpec | None = None
    started_on: date | None = None


class StatisticsStamp(ResultModel):
    """What the statistics of a build belong to."""

    build: str
    """The build's `rows_fingerprint`."""
    budget_tokens: int
    """The maximum number of tokens in a batch, padding included."""
    files: dict[InnerPath, str] = {}
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
        stamp = _read_build_stamp(output)
    except IndexExists:
        return [("the unfinished build", "unreadable", "another")]
    if stamp.spec == spec.rows_fingerprint():
        return []
    if stamp.settings is None:
        return [("the unfinished build", "of release 0.1.0", "of another release or other settings")]
    started = locate_sources(stamp.settings)
    return find_differences(started, spec.model_copy(update={"search": started.search}))


def write_build_stamp(output: Path, spec: BuildSpec) -> date:
    """Records in `output` which build is in progress there, for `require_free_directory`.

    Returns:
        The date (UTC) on which the build was first started, which a build that is resumed keeps.

    Raises:
        IndexExists: The stamp of the run before is damaged.
    """
    path = output / BUILD_STAMP_FILE
    previous = _read_build_stamp(output).started_on if path.is_file() else None
    started_on = previous or datetime.now(UTC).date()
    stamp = {
        "spec": spec.rows_fingerprint(),
        "settings": spec.model_dump(mode="json"),
        "date": started_on.isoformat(),
    }
    write_durably(path, seal(json.dumps(stamp, indent=1)))
    return started_on


def _read_build_stamp(output: Path) -> _BuildStamp:
    """Reads which build is in progress. Raises `IndexExists` if the file is damaged."""
    path = output / BUILD_STAMP_FILE
    try:
        stamp = from_json(unseal(path.read_bytes()), allow_inf_nan=False)
        spec, settings, started_on = stamp["spec"], stamp.get("settings"), stamp.get("date")
        return _BuildStamp(
            spec,
            None if settings is None else BuildSpec.model_validate(settings),
            None if started_on is None else date.fromisoformat(started_on),
        )
    except (OSError, ValueError, TypeError, LookupError, AttributeError, InvalidInput) as error:
        raise IndexExists(
            f"{path} says which build is unfinished here, and cannot be used: {error}; choose another directory, or "
            "remove this one"
        ) from error


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
    except (OSError, ValueError) as error:
        raise IndexCorrupt(
            f"{path} is missing or was altered ({error}); restore it from a copy, or build the index again"
        ) from error


def find_finished_statistics(output: Path, build: str) -> StatisticsStamp | None:
    """Returns the stamp of the statistics that an interrupted run has finished, or None if they are damaged or missing.

    Args:
        output: The directory of the index.
        build: The build's `rows_fingerprint`.
    """
    if not statistics_stamp_path(output).exists() and not (output / "shards").exists():
        return None
    try:
        stamp = read_statistics_stamp(output)
        if stamp.build != build:
            return None
        if all(file_sha256(output / path) == sha256 for path, sha256 in stamp.files.items()):
            return stamp
    except (OSError, IndexCorrupt):
        pass
    logger.warning("%s: the statistics of the unfinished build are damaged; it starts again", output)
    return None


def remove_build_stamp(output: Path) -> None:
    """Removes the files that only an unfinished build needs: its stamp, its documents, and what a reference says."""
    for name in (STREAMED_FILE, REFERENCE_FILE, BUILD_STAMP_FILE):
        (output / name).unlink(missing_ok=True)


def remove_rejected_build(output: Path, *, is_new: bool) -> None:
    """Removes the files of a build whose input was invalid, so that the input can be corrected and built again.

    If the build created the directory (`is_new`), the directory is removed as well.
    """
    remove_build_stamp(output)
    if is_new:
        shutil.rmtree(output)
