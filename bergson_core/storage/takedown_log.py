"""The log of takedowns: a document in it is shown to nobody from the moment that its line is written.

<index>/takedowns.jsonl       a line {"id", "generation", "at", "sha256"} for each takedown; lines are only appended
<index>/takedowns.head.json   {"lines", "bytes", "sha256"}: how long the log is at least, and the digest of its end

A line hides the documents with its id that were added in its generation or before, so that an id that was taken down
can be used again. Whoever answers a query reads the new lines first. A takedown therefore needs no worker, and survives
restarts. `document_lookup` finds the documents, `indexing.compact` removes their bytes.

The digest of a line is the sha256 of the digest before it and of the line, so that the head vouches for every byte
before its end. A takedown writes the line, flushes it, and then replaces the head; only then is the caller told. So a
log that is shorter than its head was damaged, while what stands beyond the head is a takedown that nobody was told of:
whole lines count, and half a line, of a process that was killed, is cut off by the next takedown. Readers read the head
before the log, and so never find it ahead.

A log of release 0.1.0 has neither digests nor a head. It gets a head with its next takedown, or when the next
generation of the index is published, and from then on the digests cover its old lines as well.
"""

import json
import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path
from typing import Any, Final

from pydantic import Field, ValidationError

from bergson_core.errors import IndexCorrupt, IndexNotFound
from bergson_core.schemas.base import ResultModel
from bergson_core.storage.index_lock import lock_takedowns
from bergson_core.storage.layout import TAKEDOWN_HEAD_FILE, TAKEDOWN_LOG_FILE
from bergson_core.utils.atomic_files import atomic_path, fsync_path
from bergson_core.utils.disk_errors import translate_disk_errors

_PUBLISH_PATIENCE_S: Final = 60.0
"""Seconds for which a process may hold the lock while a generation, which may be hours of work, is to be published."""
_NO_DIGEST: Final = "0" * 64
_DIGEST: Final = re.compile(rb', "sha256": "([0-9a-f]{64})"\}')


class TakedownHead(ResultModel):
    """A place in the log of takedowns: the end of a line."""

    lines: int = Field(default=0, ge=0)
    """Lines up to there."""
    bytes: int = Field(default=0, ge=0)
    """Bytes of these lines."""
    sha256: str = _NO_DIGEST
    """Digest of the last of them, which depends on all of them."""


def record_takedown(root: Path, document_id: str, check: Callable[[], int]) -> None:
    """Appends a line to the log. It is on disk when this returns.

    Args:
        root: Directory of the index.
        document_id: Id of the document to hide.
        check: Returns the generation of the index, or raises to prevent the takedown. It is called under the lock of
            the log.

    Raises:
        IndexBusy: Another process keeps the lock of the log.
        IndexNotFound: The index has just been removed.
        IndexCorrupt: The log is damaged.
        DiskFull: There is no room for the line.
        ReadOnly: The directory of the index may not be written to.
        DiskFailed: The disk reports an error.
    """
    with _locked(root, None):
        end = _complete_head(root)
        line = {
            "id": document_id,
            "generation": check(),
            "at": datetime.now(UTC).isoformat(timespec="seconds"),
        }
        text = json.dumps(line).encode()
        digest = _digest_after(end, text)
        content = text.removesuffix(b"}") + f', "sha256": "{digest}"}}\n'.encode()
        new_end = TakedownHead(lines=end.lines + 1, bytes=end.bytes + len(content), sha256=digest)
        # The head is written to disk before the log, under another name, so that a full disk changes nothing.
        with _new_head(root, new_end):
            _append(root / TAKEDOWN_LOG_FILE, end.bytes, content)


def protect_takedowns(root: Path) -> TakedownHead:
    """Checks the log, gives it a head if it has none or one that is behind, and returns the head.

    Raises:
        IndexBusy: Another process keeps the lock of the log.
        IndexNotFound: The index has just been removed.
        IndexCorrupt: The log is damaged.
        Cancelled: Nobody waits for the work of this thread any more.
    """
    with _locked(root, _PUBLISH_PATIENCE_S):
        TakedownLog(root).read_new_lines()
        return _complete_head(root)


@contextmanager
def _locked(root: Path, patience_s: float | None) -> Iterator[None]:
    try:
        with translate_disk_errors(root), lock_takedowns(root, patience_s):
            yield
    except FileNotFoundError:
        raise IndexNotFound.for_name(root.name) from None


def _complete_head(root: Path) -> TakedownHead:
    """Makes the head that of the whole log, and returns it.

    A process may have been killed after it had written its line, which readers have seen since.
    """
    log = TakedownLog(root)
    log.skip_to_end()
    if log.head != log.end:
        with _new_head(root, log.end):
            if log.end.lines:
                fsync_path(root / TAKEDOWN_LOG_FILE)
    return log.end


@contextmanager
def _new_head(root: Path, head: TakedownHead) -> Iterator[None]:
    """Writes a head to disk, and puts it in the place of the old one at the end of the block."""
    with atomic_path(root / TAKEDOWN_HEAD_FILE, durable=True, exclusive=True) as temporary:
        temporary.write_bytes(head.model_dump_json().encode())
        fsync_path(temporary)
        yield


def _append(path: Path, end: int, content: bytes) -> None:
    """Writes `content` behind the first `end` bytes of a file, in place of what a killed process left there.

    If that fails, the part that was written is removed. No reader has taken it for a line.
    """
    is_new = not path.exists()
    with path.open("ab", buffering=0) as file:
        file.truncate(end)
        try:
            rest = memoryview(content)
            while rest:
                rest = rest[file.write(rest) :]
        except OSError:
            with suppress(OSError):
                file.truncate(end)
            raise
        os.fsync(file.fileno())
    if is_new:
        fsync_path(path.parent)


class TakedownLog:
    """A reader of the log of one index, which reads each line once.

    Args:
        root: Directory of the index.
        least: The head that the manifest knows of. The log has a head then, and is no shorter.

    Attributes:
        end: How much of the log was read or skipped.
        head: The head as it was read last; None if the log has none.
    """

    def __init__(self, root: Path, least: TakedownHead | None = None) -> None:
        self._root, self._least = root, least
        self.end = TakedownHead()
        self.head: TakedownHead | None = None

    def read_new_lines(self) -> list[dict[str, Any]]:
        """Returns the lines that were appended since the last call.

        If the log no longer begins with what was read, and is sound by itself, all of its lines are new.

        Raises:
            IndexCorrupt: Lines are missing or were altered.
        """
        try:
            head, content = self._read_files()
            if head is None and (self._least or self.head):
                raise _Damage(f"{TAKEDOWN_HEAD_FILE} is missing")
            self.head = head
            return self._read_lines(content)
        except _Damage as damage:
            if not self._root.is_dir():
                return []  # the index was deleted while its log was read
            if self.end.bytes:  # a copy may have been restored, or another index of the same name may be here
                return self._start_over()
            raise IndexCorrupt(
                f"the takedowns of the index {self._root.name} cannot be trusted: {damage}; restore "
                f"{TAKEDOWN_LOG_FILE} and {TAKEDOWN_HEAD_FILE} from a copy, or build the index again"
            ) from damage

    def _start_over(self) -> list[dict[str, Any]]:
        log = TakedownLog(self._root, self._least)
        lines = log.read_new_lines()
        self.end, self.head = log.end, log.head
        return lines

    def skip_to_end(self) -> None:
        """Skips the lines that the log has now.

        Raises:
            IndexCorrupt: Lines are missing, or one that the head does not vouch for is wrong.
        """
        with suppress(_Damage):  # reading says what is wrong
            self.end = _read_head(self._root) or self.end
        self.read_new_lines()

    def _read_files(self) -> tuple[TakedownHead | None, bytes]:
        """Returns the head, and what follows in the log on what was read. The log is at least as new as the head."""
        while True:
            head = _read_head(self._root)
            content = _read_content(self._root / TAKEDOWN_LOG_FILE, self.end.bytes)
            if (
                head is not None or _read_head(self._root) is None
            ):  # or else the first takedown has just made it
                return head, content

    def _read_lines(self, content: bytes) -> list[dict[str, Any]]:
        """Checks and returns the whole lines of `content`, which follows on what was read."""
        end, lines = self.end, []
        # Each of them has to be the end of a line.
        marks = [
            mark for mark in (self.head, self._least) if mark and mark.bytes >= end.bytes and mark != end
        ]
        for raw in content.split(b"\n")[:-1]:  # what follows the last line break is half a line
            line, end = self._read_line(raw, end)
            marks = [mark for mark in marks if mark != end]
            lines.append(line)
        if marks:
            raise _Damage(
                f"{TAKEDOWN_LOG_FILE} has {end.lines} lines, which are not the {marks[0].lines} that were written"
            )
        self.end = end
        return lines

    def _read_line(self, raw: bytes, before: TakedownHead) -> tuple[dict[str, Any], TakedownHead]:
        number = before.lines + 1
        match = _DIGEST.search(raw)
        text = raw if match is None else raw[: match.start()] + b"}"
        end = TakedownHead(
            lines=number, bytes=before.bytes + len(raw) + 1, sha256=_digest_after(before, text)
        )
        is_of_old_release = match is None and (self.head is None or end.bytes <= self.head.bytes)
        if match is not None and self.head is None:
            raise _Damage(f"{TAKEDOWN_HEAD_FILE} is missing")
        if not is_of_old_release and (
            match is None or match.end() != len(raw) or match[1].decode() != end.sha256
        ):
            raise _Damage(f"line {number} of {TAKEDOWN_LOG_FILE} was altered")
        return _parse_line(text, number), end


class _Damage(Exception):
    """The log is not what was written; the message says what is wrong."""


def _parse_line(text: bytes, number: int) -> dict[str, Any]:
    try:
        line = json.loads(text)
    except (ValueError, RecursionError):
        line = None
    if not (
        isinstance(line, dict) and isinstance(line.get("id"), str) and isinstance(line.get("generation"), int)
    ):
        raise _Damage(f"line {number} of {TAKEDOWN_LOG_FILE} cannot be read")
    return line


def _digest_after(before: TakedownHead, text: bytes) -> str:
    return sha256(before.sha256.encode() + text).hexdigest()


def _read_head(root: Path) -> TakedownHead | None:
    path = root / TAKEDOWN_HEAD_FILE
    try:
        head = TakedownHead.model_validate_json(path.read_bytes(), strict=True)
    except FileNotFoundError:
        return None
    except (OSError, ValidationError):
        raise _Damage(f"{TAKEDOWN_HEAD_FILE} cannot be read") from None
    if head.model_fields_set != set(TakedownHead.model_fields):
        raise _Damage(f"{TAKEDOWN_HEAD_FILE} lacks fields")
    return head


def _read_content(path: Path, offset: int) -> bytes:
    """Returns the content of a file from `offset` on. Raises `_Damage` if the file is shorter."""
    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            if size < offset:
                raise _Damage(f"{path.name} has lost its end")
            # One call, since half a line may be replaced by a whole one at this moment.
            return os.pread(file.fileno(), size - offset, offset)
    except FileNotFoundError:
        if offset:
            raise _Damage(f"{path.name} is missing") from None
        return b""
    except OSError as error:
        raise _Damage(f"{path.name} cannot be read: {error}") from error
