"""A stream of work that several workers share: take what is new, take over what was left, drop what is done.

One consumer group, whose consumers are the workers. An entry that was taken stays pending until it is dropped; its
idle time is its lease, and whoever holds it starts that anew now and then. Only commands of Redis 6.2.
"""

import logging
from typing import Any, NamedTuple, cast

import redis

logger = logging.getLogger(__name__)

GROUP = "workers"
_DEAD_CONSUMER_MS = 3_600_000


class Entry(NamedTuple):
    """An entry in this worker's hands. `deliveries` counts the workers that held it, this one included."""

    id: str
    fields: dict[str, str]
    deliveries: int


class WorkStream:
    """One worker's view of the stream `name`."""

    def __init__(self, client: redis.Redis, name: str, worker_id: str):
        self._redis, self._name, self._worker_id = client, name, worker_id

    def prepare(self) -> None:
        """Makes the consumer group where it is not there, and forgets consumers that fell silent an hour ago."""
        try:
            self._redis.xgroup_create(self._name, GROUP, id="0", mkstream=True)
        except redis.ResponseError as error:
            if not str(error).startswith("BUSYGROUP"):
                raise
        for consumer in cast("list[dict[str, Any]]", self._redis.xinfo_consumers(self._name, GROUP)):
            if not consumer["pending"] and consumer["idle"] > _DEAD_CONSUMER_MS:
                self._redis.xgroup_delconsumer(self._name, GROUP, consumer["name"])

    def new(self, count: int) -> list[Entry]:
        """Up to `count` entries that nobody took yet. Never waits."""
        found = self._redis.xreadgroup(GROUP, self._worker_id, {self._name: ">"}, count=count)
        streams = cast("list[tuple[str, list[tuple[str, dict[str, str]]]]]", found or [])
        return [Entry(entry, fields, 1) for _, entries in streams for entry, fields in entries]

    def abandoned(self, count: int, idle_s: float) -> list[Entry]:
        """Takes over up to `count` entries that were idle for `idle_s` seconds. Of two workers, one gets each.

        XPENDING and XCLAIM rather than XAUTOCLAIM, which in Redis 6.2 does not tell how often an entry was
        delivered, nor which one is no longer there.
        """
        idle_ms = round(1000 * idle_s)
        pending = self._redis.xpending_range(self._name, GROUP, "-", "+", count, idle=idle_ms)
        times = {
            item["message_id"]: item["times_delivered"] for item in cast("list[dict[str, Any]]", pending)
        }
        if not times:
            return []
        claimed = self._redis.xclaim(
            self._name, GROUP, self._worker_id, idle_ms, cast("list[Any]", list(times))
        )
        entries = [
            Entry(entry, fields, times[entry] + 1)
            for entry, fields in cast("list[tuple[str | None, dict[str, str]]]", claimed)
            if entry is not None
        ]
        for gone in times.keys() - {entry.id for entry in entries}:
            if not self._redis.xrange(self._name, gone, gone):
                self._redis.xack(self._name, GROUP, gone)
        logger.info("took over %d entries of %s", len(entries), self._name)
        return entries

    def drop(self, entry: str) -> None:
        """Takes an entry off the stream for good."""
        with self._redis.pipeline() as pipe:
            pipe.xack(self._name, GROUP, entry)
            pipe.xdel(self._name, entry)
            pipe.execute()
