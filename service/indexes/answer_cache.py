"""Keeps answers in memory, because the same query to the same index has the same answer.

An index counts as the same as long as its manifest on disk and its takedowns are the same, and the behaviours that are
asked for, so that every change of an index makes its answers obsolete. Each web process keeps the answers that it used
last, as JSON.
"""

import sys
from collections import OrderedDict
from collections.abc import Hashable
from hashlib import sha256
from pathlib import Path
from typing import Final

from bergson_core.schemas.query import AttributionQuery
from bergson_core.schemas.results import Answer
from bergson_core.storage.behaviours import behaviour_stamp
from bergson_core.storage.manifest import MANIFEST_FILE
from bergson_core.storage.takedown_log import TakedownLog

CacheKey = tuple[Hashable, ...]
_ENTRY_BYTES: Final = 200
"""What an entry takes besides its key and its answer."""


def make_cache_key(index: Path, log: TakedownLog, query: AttributionQuery) -> CacheKey | None:
    """Returns everything that the answer to a query depends on; None when there is no index.

    Args:
        index: Directory of the index.
        log: Its takedowns. Those that were read or skipped so far count.
        query: The query.
    """
    try:
        stat = (index / MANIFEST_FILE).stat()
    except OSError:
        return None
    query_sha256 = sha256(query.model_dump_json().encode()).digest()  # the query itself may take megabytes
    is_old = log.head is None
    behaviours = [name for name in (query.behaviour, query.instead_of_behaviour) if name is not None]
    stamps = tuple(behaviour_stamp(index, name) for name in behaviours)
    return query_sha256, stat.st_mtime_ns, stat.st_ino, stat.st_size, log.end.sha256, is_old, stamps


class AnswerCache:
    """The answers that were used last, up to `max_bytes` in all with their keys; 0 keeps none."""

    def __init__(self, max_bytes: int):
        self._max_bytes, self._bytes = max_bytes, 0
        self._answers: OrderedDict[CacheKey, bytes] = OrderedDict()

    def get(self, key: CacheKey | None) -> Answer | None:
        """Returns the answer that was put under `key`; None when there is none, or not any more."""
        if key is None or (raw := self._answers.get(key)) is None:
            return None
        self._answers.move_to_end(key)
        return Answer.model_validate_json(raw)

    def put(self, key: CacheKey | None, answer: Answer) -> None:
        """Keeps an answer, unless another one may be better: shards may be repaired, and more time may rescore more."""
        is_cut_short = answer.rescored is not None and answer.rescored.exact < answer.rescored.candidates
        if key is None or answer.partial or is_cut_short or not self._max_bytes:
            return
        if key in self._answers:
            self._bytes -= _entry_bytes(key, self._answers.pop(key))
        raw = self._answers[key] = answer.model_dump_json().encode()
        self._bytes += _entry_bytes(key, raw)
        while self._bytes > self._max_bytes:
            self._bytes -= _entry_bytes(*self._answers.popitem(last=False))


def _entry_bytes(key: CacheKey, raw: bytes) -> int:
    """Returns the memory that an answer takes with its key."""
    return _ENTRY_BYTES + sum(map(sys.getsizeof, (key, *key, raw)))
