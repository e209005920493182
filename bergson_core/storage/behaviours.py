"""The behaviours of an index on disk: named sets of queries, each in a directory of its own beside the other files.

    behaviours/<name>/behaviour.json    `BehaviourRecord`, sealed (`utils.sealed_json`)
    behaviours/<name>/queries.jsonl     the queries as they were given, and behind them those of the control set
    behaviours/<name>/gradients.bin     their rows, in the same order, in the codec float16 (`shards.codecs`)
    behaviours/<name>/scales.bin        the scales of that codec

A behaviour is in no manifest, so that creating or deleting one makes no new generation, and no generation makes one
useless. Its directory appears whole, by a rename, and disappears by a rename.
"""

import json
import re
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final
from uuid import uuid4

from bergson_core.errors import BehaviourExists, BehaviourNotFound, IndexCorrupt
from bergson_core.schemas.base import ResultModel
from bergson_core.schemas.behaviours.results import BehaviourDetail, BehaviourSummary
from bergson_core.schemas.build import NAME_PATTERN
from bergson_core.storage.integrity import find_damaged_files
from bergson_core.storage.layout import BEHAVIOURS_DIRECTORY
from bergson_core.storage.manifest import Count, DirectoryName, FileEntry, PositiveCount
from bergson_core.utils.disk_errors import translate_disk_errors
from bergson_core.utils.sealed_json import SEAL_FIELD, seal, unseal

RECORD_FILE: Final = "behaviour.json"
QUERIES_FILE: Final = "queries.jsonl"
_MAX_NAMES_SHOWN: Final = 20


class BehaviourRecord(ResultModel):
    """What a behaviour consists of, and what it was made with."""

    name: DirectoryName
    key: str = ""
    """Identifies the caller that created the behaviour, so that a repeated call recognises its own."""
    generation: PositiveCount
    created_at: str
    processor: str
    """Fingerprint of the processor that the rows were computed with."""
    model_sha256: str
    modules: tuple[str, ...]
    """The tracked modules, in their order in a row."""
    width: PositiveCount
    """Numbers of a row for each module."""
    query_count: PositiveCount
    control_count: Count
    loss: float
    control_loss: float | None
    n_tokens: Count
    files: tuple[FileEntry, ...]

    def summary(self) -> BehaviourSummary:
        """Returns what is shown of the behaviour in a list."""
        shared = BehaviourSummary.model_fields.keys() & BehaviourRecord.model_fields.keys()
        fields: dict[str, Any] = {name: getattr(self, name) for name in shared}
        return BehaviourSummary(**fields, size_bytes=sum(entry.bytes for entry in self.files))


def behaviour_path(root: Path, name: str) -> Path:
    """Returns the directory of a behaviour of the index at `root`."""
    return root / BEHAVIOURS_DIRECTORY / name


def write_record(directory: Path, record: BehaviourRecord) -> None:
    """Writes the record of a behaviour to a directory that is not published yet."""
    (directory / RECORD_FILE).write_bytes(seal(record.model_dump_json(indent=1)))


def write_queries(
    directory: Path, queries: Sequence[Mapping[str, Any]], control: Sequence[Mapping[str, Any]]
) -> None:
    """Writes the queries of a behaviour, and those of its control set, to a directory that is not published yet."""
    lines = (json.dumps(query) + "\n" for query in (*queries, *control))
    (directory / QUERIES_FILE).write_text("".join(lines), encoding="utf-8")


def list_behaviour_names(root: Path) -> list[str]:
    """Returns the names of the behaviours of the index at `root`, sorted."""
    directory = root / BEHAVIOURS_DIRECTORY
    if not directory.is_dir():
        return []
    names = (path.name for path in directory.iterdir() if (path / RECORD_FILE).is_file())
    return sorted(name for name in names if re.fullmatch(NAME_PATTERN, name))


def list_behaviours(root: Path) -> list[BehaviourSummary]:
    """Returns the behaviours of the index at `root`, in the order of their names.

    Raises:
        IndexCorrupt: The record of a behaviour is damaged.
    """
    records = []
    for name in list_behaviour_names(root):
        try:
            records.append(read_record(root, name).summary())
        except BehaviourNotFound:
            continue  # it was deleted after its name was listed
    return records


def read_record(root: Path, name: str) -> BehaviourRecord:
    """Returns the record of a behaviour.

    Raises:
        BehaviourNotFound: The index at `root` has no behaviour of this name; the message names those that it has.
        IndexCorrupt: The record is damaged.
    """
    if not re.fullmatch(NAME_PATTERN, name):
        raise _not_found(root, name)
    path = behaviour_path(root, name) / RECORD_FILE
    try:
        raw = json.loads(unseal(path.read_bytes()))
        record = BehaviourRecord.model_validate({key: raw[key] for key in raw if key != SEAL_FIELD})
    except (FileNotFoundError, NotADirectoryError):
        raise _not_found(root, name) from None
    except (OSError, ValueError, TypeError, RecursionError) as error:
        raise _damaged(root, name, f"{path} cannot be read: {error}") from error
    if record.name != name:
        raise _damaged(root, name, f"{path} says that its name is {record.name!r}")
    return record


def read_detail(root: Path, name: str) -> BehaviourDetail:
    """Returns a behaviour with its queries.

    Raises:
        BehaviourNotFound: The index at `root` has no behaviour of this name.
        IndexCorrupt: The behaviour is damaged.
    """
    record = read_record(root, name)
    require_intact(root, record, (QUERIES_FILE,))
    try:
        lines = (behaviour_path(root, name) / QUERIES_FILE).read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        raise _not_found(root, name) from None
    queries = [json.loads(line) for line in lines]
    return BehaviourDetail(
        **dict(record.summary()),
        queries=queries[: record.query_count],
        control=queries[record.query_count :] or None,
    )


def require_intact(root: Path, record: BehaviourRecord, names: Sequence[str] | None = None) -> None:
    """Checks the files of a behaviour, or those of these names.

    Raises:
        BehaviourNotFound: The behaviour was deleted after its record was read.
        IndexCorrupt: A file is missing or was altered.
    """
    entries = [entry for entry in record.files if names is None or Path(entry.path).name in names]
    if damaged := find_damaged_files(root, entries):
        if not behaviour_path(root, record.name).exists():
            raise _not_found(root, record.name)
        raise _damaged(root, record.name, damaged[0][1])


def require_behaviour(root: Path, name: str) -> None:
    """Raises `BehaviourNotFound` unless the index at `root` has a behaviour of this name."""
    if behaviour_stamp(root, name) is None:
        raise _not_found(root, name)


def require_new_behaviour(root: Path, name: str) -> None:
    """Raises `BehaviourExists` if the index at `root` has a behaviour of this name."""
    if behaviour_stamp(root, name) is not None:
        raise BehaviourExists(
            f"{root.name} has a behaviour {name!r} already; choose another name, or delete it first"
        )


def behaviour_stamp(root: Path, name: str) -> tuple[int, int, int] | None:
    """Returns a value that differs for each behaviour that was ever created, or None if there is none of this name."""
    if not re.fullmatch(NAME_PATTERN, name):
        return None
    try:
        stat = (behaviour_path(root, name) / RECORD_FILE).stat()
    except OSError:
        return None
    return stat.st_mtime_ns, stat.st_ino, stat.st_size


def delete_behaviour(root: Path, name: str) -> None:
    """Deletes a behaviour: no query finds it from this moment on. A job on the index may run meanwhile.

    Raises:
        BehaviourNotFound: The index at `root` has no behaviour of this name.
        ReadOnly: The directory of the index may not be written to.
        DiskFailed: The disk reports an error.
    """
    require_behaviour(root, name)
    path = behaviour_path(root, name)
    hidden = path.with_name(f".{name}.{uuid4().hex}.deleted")
    with translate_disk_errors(root):
        try:
            path.rename(hidden)
        except FileNotFoundError:  # another call was faster
            raise _not_found(root, name) from None
    shutil.rmtree(hidden, ignore_errors=True)


def remove_unfinished_behaviours(root: Path) -> None:
    """Removes what calls have left that were killed while they created or deleted a behaviour.

    Args:
        root: Directory of the index. The caller holds its lock, so that no behaviour is being created.
    """
    for path in (root / BEHAVIOURS_DIRECTORY).glob(".*"):
        shutil.rmtree(path, ignore_errors=True)


def _not_found(root: Path, name: str) -> BehaviourNotFound:
    names = list_behaviour_names(root)
    shown = ", ".join(names[:_MAX_NAMES_SHOWN])
    more = f" and {len(names) - _MAX_NAMES_SHOWN} more" if len(names) > _MAX_NAMES_SHOWN else ""
    available = f"it has {shown}{more}" if names else "it has none; create it first"
    return BehaviourNotFound(f"{root.name} has no behaviour {name[:100]!r}; {available}")


def _damaged(root: Path, name: str, problem: str) -> IndexCorrupt:
    return IndexCorrupt(
        f"the behaviour {name!r} of {root.name} is damaged: {problem}; restore it from a copy, or delete and create it "
        "again. Queries that do not ask for it are answered"
    )
