"""The log of canary runs, of which `GET /metrics` shows the last run of each index.

    <data_dir>/canary/<index>.jsonl     a `CanaryRun` on each line, the last `MAX_RUNS` of them

docs/observing.md says what a run measures. A file is replaced as a whole, so that nobody reads a part of a line.
"""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from filelock import FileLock
from pydantic import ValidationError

from bergson_core.schemas.base import ResultModel
from bergson_core.storage.manifest import MANIFEST_FILE
from bergson_core.utils.atomic_files import write_durably
from bergson_core.utils.disk_errors import translate_disk_errors
from worker.settings import Settings

logger = logging.getLogger(__name__)

MAX_RUNS: Final = 10_000
"""Enough for a run an hour over fourteen months; about 3 MB."""
_TAIL_BYTES: Final = 4096
"""How much is read of the end of a file to find its last line."""


class CanaryRun(ResultModel):
    """The measurements of one run of `bergson canary`."""

    index: str
    generation: int
    at: float
    """Unix time in seconds."""
    queries: int
    mrr: float | None
    """Mean over the queries of 1 / rank of the first right document among the ten best results, or 0 if there is none
    among them; null when the queries name no right documents."""
    recall_at_10: float | None
    """Share of the ten rows with the best exact scores that the answers have; null when the index has changed during
    the run."""
    latency_p50_s: float
    """Median of the time from a request to its answer, in seconds."""
    latency_p95_s: float
    """95th percentile of that time."""


def append_run(settings: Settings, run: CanaryRun) -> Path:
    """Adds a run to the file of its index, and flushes the file to disk.

    Returns:
        The path of the file.
    """
    path = _log_path(settings, run.index)
    with translate_disk_errors(path.parent), _locked(path):
        lines = path.read_bytes().splitlines(keepends=True)[1 - MAX_RUNS :] if path.exists() else []
        write_durably(path, b"".join([*lines, run.model_dump_json().encode() + b"\n"]))
    return path


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(path.with_suffix(".lock")):
        yield


def iter_last_runs(
    settings: Settings, is_visible: Callable[[str], bool] = lambda index: True
) -> Iterator[CanaryRun]:
    """Yields the last run of each published index, in the order of the names.

    A file that cannot be read is logged and left out.

    Args:
        settings: The settings, for the data directory.
        is_visible: Whether the caller may see the index of this name.
    """
    for path in sorted((settings.data_dir / "canary").glob("*.jsonl")):
        if not is_visible(path.stem) or not (settings.indexes_dir / path.stem / MANIFEST_FILE).is_file():
            continue
        try:
            with path.open("rb") as file:
                file.seek(max(0, path.stat().st_size - _TAIL_BYTES))
                yield CanaryRun.model_validate_json(file.read().splitlines()[-1])
        except (OSError, IndexError, ValidationError) as error:
            logger.warning("%s cannot be read: %s", path, error)


def delete_runs(settings: Settings, index: str) -> None:
    """Deletes the runs of an index."""
    path = _log_path(settings, index)
    with translate_disk_errors(path.parent):
        for suffix in (".jsonl", ".lock"):
            path.with_suffix(suffix).unlink(missing_ok=True)


def _log_path(settings: Settings, index: str) -> Path:
    return settings.data_dir / "canary" / f"{index}.jsonl"
