"""What must hold after any fault."""

import hashlib
import json
from pathlib import Path
from typing import cast

from redis import Redis

from bergson_core.storage.layout import TAKEDOWN_HEAD_FILE, TAKEDOWN_LOG_FILE
from bergson_core.storage.manifest import MANIFEST_FILE
from tests.faults.support.system import wait_until
from worker.messages import FINAL_STATES, PRIORITIES, JobRecord
from worker.queue import redis_keys

_UNEQUAL_FILES = (".checked.json", ".lock")
"""Files that hold the times of other files, or nothing."""
_UNEQUAL_FIELDS = {"created_at": None, "fingerprint": None, "takedowns": None, "sha256": None}
"""Fields of a manifest that hold a time or a digest of one, or depend on the name of the index by that of its
upload."""


def hash_index(directory: Path) -> dict[str, str]:
    """Returns the sha256 of each file of an index by its path within the index, and an empty text for a directory.

    The same jobs with the same documents give the same hashes, whatever happened to their workers. Of the manifest,
    times, ids of jobs and the name of the index are left out, and of the log of takedowns the times and
    digests.
    """
    return {
        str(path.relative_to(directory)): ""
        if path.is_dir()
        else hashlib.sha256(_read_comparable(path)).hexdigest()
        for path in sorted(directory.rglob("*"))
        if not path.name.endswith(_UNEQUAL_FILES)
    }


def _read_comparable(path: Path) -> bytes:
    content = path.read_bytes()
    if path.name == TAKEDOWN_HEAD_FILE:
        return str(json.loads(content)["lines"]).encode()
    if path.name == TAKEDOWN_LOG_FILE:
        lines = [json.loads(line) for line in content.splitlines()]
        return json.dumps([[line["id"], line["generation"]] for line in lines]).encode()
    if path.name != MANIFEST_FILE:
        return content
    manifest = json.loads(content) | _UNEQUAL_FIELDS
    sources = list(dict.fromkeys(shard["source"] for shard in manifest["shards"]))
    for shard in manifest["shards"]:
        shard["source"] = sources.index(shard["source"])
    for profile in manifest["profiles"]:
        profile["key"] = bool(profile["key"])
    return json.dumps(manifest, sort_keys=True).replace(f"/uploads/{path.parent.name}-", "/uploads/").encode()


def require_one_end(redis: Redis, job_id: str, state: str = "succeeded") -> JobRecord:
    """Returns the record of a job; fails unless the job has ended exactly once, in `state`."""
    raw = cast("str", redis.hget(redis_keys.job_key(job_id), "record"))
    record = JobRecord.model_validate_json(raw)
    entries = cast("list[tuple[str, dict[str, str]]]", redis.xrange(redis_keys.events_key(job_id)))
    states = [JobRecord.model_validate_json(fields["record"]).state for _, fields in entries]
    ends = [position for position, event_state in enumerate(states) if event_state in FINAL_STATES]
    assert record.state == state, f"{record.kind} of {record.index}: {record}"
    assert ends == [len(states) - 1], f"{record.kind} of {record.index}: {states}"
    return record


def require_drained(redis: Redis, timeout_s: float = 30) -> None:
    """Waits until no job and no query waits or is in a worker's hand; fails if that does not come about."""

    def find_pending() -> list[str]:
        keys = [redis_keys.JOB_LEASES, redis_keys.JOB_LANES, redis_keys.BUILDING, redis_keys.QUERY_LEASES]
        for priority in PRIORITIES:
            keys += redis_keys.waiting_keys(priority)[:2]
        return [key for key in keys if redis.exists(key)]

    wait_until(lambda: not find_pending(), "nothing waits in Redis", timeout_s)


def require_no_leftovers(data_dir: Path) -> None:
    """Fails if a directory without an index, or inline documents of a job, are left in the data directory."""
    uploads, indexes = data_dir / "uploads", data_dir / "indexes"
    left = list(uploads.iterdir()) if uploads.exists() else []
    left += [path for path in indexes.iterdir() if not (path / MANIFEST_FILE).exists()]
    assert not left, f"left behind: {[str(path.relative_to(data_dir)) for path in left]}"
