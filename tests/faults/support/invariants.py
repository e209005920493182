"""What must hold after any fault."""

import hashlib
import json
from pathlib import Path

from redis import Redis

from bergson_core.storage.manifest import MANIFEST_FILE
from tests.faults.support.system import wait_until
from worker.messages import PRIORITIES
from worker.queue import redis_keys

_UNEQUAL_FILES = (".checked.json", ".lock")
"""Files that hold the times of other files, or nothing."""


def hash_index(directory: Path) -> dict[str, str]:
    """Returns the sha256 of each file of an index by its path within the index.

    Two builds of the same documents give the same hashes, whatever happened to their workers. The manifest is hashed
    without the time of its creation.
    """
    return {
        str(path.relative_to(directory)): hashlib.sha256(_read_comparable(path)).hexdigest()
        for path in sorted(directory.rglob("*"))
        if path.is_file() and not path.name.endswith(_UNEQUAL_FILES)
    }


def _read_comparable(path: Path) -> bytes:
    content = path.read_bytes()
    if path.name != MANIFEST_FILE:
        return content
    return json.dumps(json.loads(content) | {"created_at": None}, sort_keys=True).encode()


def require_drained(redis: Redis, timeout_s: float = 30) -> None:
    """Waits until no job and no query waits or is in a worker's hand; fails if that does not come about."""

    def find_pending() -> list[str]:
        keys = [redis_keys.JOB_LEASES, redis_keys.JOB_LANES, redis_keys.BUILDING, redis_keys.QUERY_LEASES]
        for priority in PRIORITIES:
            keys += redis_keys.waiting_keys(priority)[:2]
        return [key for key in keys if redis.exists(key)]

    wait_until(lambda: not find_pending(), "nothing waits in Redis", timeout_s)
