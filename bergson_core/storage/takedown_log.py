"""The log of takedowns: a document in it is shown to nobody from the moment that its line is written.

<index>/takedowns.jsonl   a line {"id", "generation", "at"} for each takedown; lines are only ever appended

A line hides the documents with its id that were added in its generation or before, so that an id that was taken down
can be used again. Whoever answers a query looks at the size of the log first, and reads the new lines. A takedown
therefore needs no worker, and survives restarts. `document_lookup` finds the documents, `indexing.compact` removes
their bytes.
"""

import json
import os
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any

from filelock import FileLock

from bergson_core.storage.layout import TAKEDOWN_LOG_FILE
from bergson_core.utils.atomic_files import fsync_path

_LOCK_FILE = ".takedowns.lock"


def record_takedown(root: Path, document_id: str, check: Callable[[], int]) -> None:
    """Appends a line to the log. It is on disk when this returns.

    Args:
        root: Directory of the index.
        document_id: Id of the document to hide.
        check: Returns the generation of the index, or raises to prevent the takedown. It is called under the lock of
            the log.
    """
    with FileLock(root / _LOCK_FILE):
        line = {
            "id": document_id,
            "generation": check(),
            "at": datetime.now(UTC).isoformat(timespec="seconds"),
        }
        with (root / TAKEDOWN_LOG_FILE).open("ab+") as file:
            # A process may have been killed in the middle of a line; nobody was told that the line was written.
            file.truncate(len(_read_whole_lines(file, 0)))
            file.write(json.dumps(line).encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())
        fsync_path(root)


def _read_whole_lines(file: IO[bytes], offset: int) -> bytes:
    file.seek(offset)
    content = file.read()
    return content[: content.rfind(b"\n") + 1]


class TakedownLog:
    """A reader of the log of one index, which reads each line once.

    Attributes:
        lines_read: Number of lines that were read.
        offset: Number of bytes that were read or skipped.
    """

    def __init__(self, root: Path) -> None:
        self._path = root / TAKEDOWN_LOG_FILE
        self.lines_read = 0
        self.offset = 0

    def read_new_lines(self) -> list[dict[str, Any]]:
        """Returns the lines that were appended since the last call."""
        try:
            if self._path.stat().st_size <= self.offset:
                return []
            with self._path.open("rb") as file:
                content = _read_whole_lines(file, self.offset)
        except FileNotFoundError:
            return []
        self.offset += len(content)
        lines = content.splitlines()
        self.lines_read += len(lines)
        return [json.loads(line) for line in lines]

    def skip_to_end(self) -> None:
        """Skips the lines that the log has now."""
        try:
            self.offset = self._path.stat().st_size
        except FileNotFoundError:
            self.offset = 0
