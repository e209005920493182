"""The log of takedowns: documents that nobody is shown any more, from the moment that they stand in it. No torch here.

    <index>/takedowns.jsonl   {"id", "generation", "at"} a line, only ever appended to

A line hides the rows of its id that were added in its generation or before, so that a document may be added again
under an id that was taken down. Whoever answers looks at the log's size first, and reads what is new; so a takedown
needs no worker, and survives restarts. `lookup` finds the documents, `compaction` removes their bytes.
"""

import json
import os
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from filelock import FileLock

from bergson_core.storage.layout import TAKEDOWN_LOG_FILE


def record_takedown(root: Path, document_id: str, check: Callable[[], int]) -> None:
    """Appends a line, on disk when this returns. `check` raises to prevent it, or gives the index's generation."""
    with FileLock(root / ".takedowns.lock"):
        line = {
            "id": document_id,
            "generation": check(),
            "at": datetime.now(UTC).isoformat(timespec="seconds"),
        }
        with (root / TAKEDOWN_LOG_FILE).open("ab+") as file:
            # A process may have been killed in the middle of a line: nobody was told that it stood.
            file.truncate(len(_whole_lines(file, 0)))
            file.write(json.dumps(line).encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())
        handle = os.open(root, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def _whole_lines(file: Any, offset: int) -> bytes:
    file.seek(offset)
    content = file.read()
    return content[: content.rfind(b"\n") + 1]


class TakedownLog:
    """Reads the log of the index in directory `root`, each line once.

    `lines` counts those that were read, `offset` the bytes that were read or skipped.
    """

    def __init__(self, root: Path) -> None:
        self._path, self.offset = root / TAKEDOWN_LOG_FILE, 0
        self.lines = 0

    def read_new_lines(self) -> list[dict[str, Any]]:
        """What was appended since the last call."""
        try:
            if self._path.stat().st_size <= self.offset:
                return []
            with self._path.open("rb") as file:
                content = _whole_lines(file, self.offset)
        except FileNotFoundError:
            return []
        self.offset += len(content)
        lines = content.splitlines()
        self.lines += len(lines)
        return [json.loads(line) for line in lines]

    def skip_to_end(self) -> None:
        """Leaves out what stands in it by now, without reading it."""
        try:
            self.offset = self._path.stat().st_size
        except FileNotFoundError:
            self.offset = 0
