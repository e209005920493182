"""Answers that were given before: the same question to the same index has the same answer.

"The same index" is its manifest as it lies on disk and the takedowns so far, so that whatever changes an index makes
its answers new. Kept are the latest answers, as JSON, up to so many bytes, by each web process for itself.
"""

from collections import OrderedDict
from collections.abc import Hashable
from pathlib import Path

from bergson_core.schemas.query import AttributionQuery
from bergson_core.schemas.results import Answer
from bergson_core.storage.manifest import MANIFEST_FILE
from bergson_core.storage.takedown_log import TakedownLog

CacheKey = tuple[Hashable, ...]


def make_cache_key(index: Path, log: TakedownLog, query: AttributionQuery) -> CacheKey | None:
    """What the answer depends on; None where there is no index. Of the `log` counts what was read or skipped."""
    try:
        stat = (index / MANIFEST_FILE).stat()
    except OSError:
        return None
    return query.model_dump_json(), stat.st_mtime_ns, stat.st_ino, stat.st_size, log.offset


class AnswerCache:
    """The latest answers, `most_bytes` of them in all; with 0 there are none."""

    def __init__(self, most_bytes: int):
        self._most, self._bytes = most_bytes, 0
        self._answers: OrderedDict[CacheKey, bytes] = OrderedDict()

    def get(self, key: CacheKey | None) -> Answer | None:
        """The answer that was put under `key`, unless it had to make room."""
        if key is None or (raw := self._answers.get(key)) is None:
            return None
        self._answers.move_to_end(key)
        return Answer.model_validate_json(raw)

    def put(self, key: CacheKey | None, answer: Answer) -> None:
        """Keeps an answer, but for one that lacks damaged shards: they may be mended."""
        if key is None or answer.partial or not self._most:
            return
        self._bytes -= len(self._answers.pop(key, b""))
        raw = self._answers[key] = answer.model_dump_json().encode()
        self._bytes += len(raw)
        while self._bytes > self._most:
            self._bytes -= len(self._answers.popitem(last=False)[1])
