"""The runs of canaries: a line of JSON each, in a file for each index, of which `GET /metrics` shows the last.

    <data_dir>/canary/<index>.jsonl

What a run measures stands in docs/observing.md. A file is replaced as a whole, so that nobody reads a part of a line,
and has the last `MOST_RUNS` runs. No torch here.
"""

import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

from filelock import FileLock
from pydantic import ValidationError

from bergson_core.schemas.base import ResultModel
from bergson_core.storage.manifest import MANIFEST_FILE
from bergson_core.utils.atomic_files import write_durably
from worker.settings import Settings

logger = logging.getLogger(__name__)

MAX_RUNS: Final = 10_000
"""A year of hours, and two months; some 3 MB."""
_TAIL_BYTES: Final = 4096


class CanaryRun(ResultModel):
    """What one run has measured."""

    index: str
    generation: int
    at: float
    """Unix time in seconds."""
    queries: int
    mrr: float | None
    """Mean of 1 / rank of the first right document among the ten best, 0 without; null where the queries have none."""
    recall_at_10: float | None
    """Share of the ten best rows, by the exact scores of all, that the answers have; null where the index has changed
    meanwhile."""
    latency_p50_s: float
    """Of the time from a request to its answer."""
    latency_p95_s: float


def append_run(settings: Settings, run: CanaryRun) -> Path:
    """Adds a run to the file of its index, flushed to disk; the path of that."""
    path = _log_path(settings, run.index)
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(path.with_suffix(".lock")):
        lines = path.read_bytes().splitlines(keepends=True)[1 - MAX_RUNS :] if path.exists() else []
        write_durably(path, b"".join([*lines, run.model_dump_json().encode() + b"\n"]))
    return path


def iter_last_runs(settings: Settings, shown: Callable[[str], bool] = lambda index: True) -> Iterator[CanaryRun]:
    """The last run of each index that there is and is `shown`, by name. What cannot be read is passed over."""
    for path in sorted((settings.data_dir / "canary").glob("*.jsonl")):
        if not shown(path.stem) or not (settings.indexes_dir / path.stem / MANIFEST_FILE).is_file():
            continue
        try:
            with path.open("rb") as file:
                file.seek(max(0, path.stat().st_size - _TAIL_BYTES))
                yield CanaryRun.model_validate_json(file.read().splitlines()[-1])
        except (OSError, IndexError, ValidationError) as error:
            logger.warning("%s cannot be read: %s", path, error)


def delete_runs(settings: Settings, index: str) -> None:
    """Removes the runs of an index that was deleted."""
    for suffix in (".jsonl", ".lock"):
        _log_path(settings, index).with_suffix(suffix).unlink(missing_ok=True)


def _log_path(settings: Settings, index: str) -> Path:
    return settings.data_dir / "canary" / f"{index}.jsonl"
