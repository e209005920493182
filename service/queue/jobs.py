"""`JobBroker`: how the web process submits, lists, follows and cancels the jobs in Redis."""

import asyncio
import hashlib
import json
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, cast

from redis.asyncio import Redis

from bergson_core.errors import IndexBusy, IndexExists, InvalidInput, JobNotFound, QueueFull
from bergson_core.storage.manifest import MANIFEST_FILE
from service.queue.job_limits import JobLimits
from service.queue.redis_calls import REDIS_WAIT_S, call_redis, translate_redis_errors
from service.queue.replies import BLOCK_MS, StreamEntries
from worker.messages import FINAL_STATES, BuildJob, Job, JobRecord, JobState
from worker.queue import job_records, lua_scripts, redis_keys
from worker.queue.redis_errors import UnexpectedReply, require_list
from worker.settings import Settings
from worker.telemetry import tracing

_SCAN_BATCH_SIZE = 100
_BEFORE_FIRST_EVENT = "0"


class JobBroker:
    """The jobs in Redis, as the web process sees them.

    Every method raises `RedisUnavailable` when Redis does not answer, and `RedisFull` when it is full. No call waits
    for Redis for longer than `REDIS_WAIT_S`.

    Args:
        settings: The settings of the process.
        redis: Connections for commands that are answered at once.
        following_redis: Connections that wait in Redis for the events of a job.
    """

    def __init__(self, settings: Settings, redis: Redis, following_redis: Redis):
        self._settings, self._redis, self._following_redis = settings, redis, following_redis
        self._max_followers, self._followers = following_redis.connection_pool.max_connections, 0
        self._submit_job = redis.register_script(lua_scripts.SUBMIT_JOB)
        self._save_job = redis.register_script(lua_scripts.SAVE_JOB)

    async def submit(self, job: Job, idempotency_key: str | None = None, lane: str = "") -> JobRecord:
        """Queues a job.

        Args:
            job: The job.
            idempotency_key: If this key came with the same job before, nothing is queued again for as long as that job
                can be read. Other lanes, other kinds of job and other indexes have keys of their own.
            lane: Id of the API key. The jobs of one lane wait for each other, and lanes take turns.

        Returns:
            The record of the queued job, or of the one that the idempotency key made before.

        Raises:
            IndexExists: For a build: an index of this name is published or being built.
            IndexBusy: For any other job that changes an index: another job is changing it.
            InvalidInput: The idempotency key came with a different job before, or the job is larger than all that may
                wait.
            QueueFull: Too many jobs, or too many bytes of jobs, have not ended, in this lane or in all.
        """
        index, is_build = job.index or "", isinstance(job, BuildJob)
        record = JobRecord(
            job_id=job.job_id, kind=job.kind, index=job.index, state="queued", created_at=time.time()
        )
        job = job.model_copy(update={"traceparent": tracing.traceparent()})
        message, body_sha256, size = await asyncio.to_thread(_encode, job)
        limits = JobLimits.for_lane(self._settings, lane)
        limits.require_possible(size)
        is_published = is_build and (self._settings.indexes_dir / index / MANIFEST_FILE).exists()
        keys = [
            redis_keys.IDEMPOTENCY_PREFIX + _scoped_sha256(idempotency_key or "", lane, job),
            redis_keys.BUILDING,
            redis_keys.job_key(job.job_id),
            redis_keys.events_key(job.job_id),
            redis_keys.JOBS_BY_CREATION,
            redis_keys.JOB_LANES,
            redis_keys.JOB_LANE_PREFIX + lane,
            redis_keys.JOB_LEASES,
        ]
        changed = record.changed_index or ""
        arguments = [
            *(changed, job.job_id, body_sha256, message, record.model_dump_json(), record.created_at),
            *(int(is_published), "1" if idempotency_key else "", lane),
            *(redis_keys.JOB_LANE_PREFIX, redis_keys.JOB_PREFIX),
            *(limits.all_jobs, limits.all_bytes, limits.lane_jobs, limits.lane_bytes),
        ]
        reply = await call_redis(cast("Any", self._submit_job(keys=keys, args=arguments)))
        with translate_redis_errors():
            outcome, *details = require_list(reply)
        if outcome == "taken" and not is_build:
            raise IndexBusy(f"job {details[0]} is changing {index!r}: try again when this job has ended")
        if outcome == "taken":
            reason = f"job {details[0]} is building it" if details[0] else "it is published"
            raise IndexExists(f"the name {index!r} is taken, {reason}: choose another")
        if outcome == "known":
            if details[1] != body_sha256:
                raise InvalidInput("this idempotency key was used with another body: use a new key")
            known = job_records.parse_record(details[2])
            if known is None:
                raise job_not_found(details[0])
            return known
        if outcome == "full":
            raise limits.full_error(*details)
        return record

    async def read_job(self, job_id: str) -> JobRecord:
        """Returns the current record of a job. Raises `JobNotFound`."""
        return (await self._read_record_and_token(job_id))[0]

    async def list_jobs(
        self,
        state: JobState | None = None,
        cursor: str | None = None,
        limit: int = 50,
        is_visible: Callable[[str | None], bool] = lambda index: True,
    ) -> tuple[list[JobRecord], str | None]:
        """Returns a page of jobs, newest first, and the cursor of the next page.

        Args:
            state: The state of the jobs to list; None lists jobs in any state.
            cursor: Where the page starts; None for the first page.
            limit: Most jobs on the page.
            is_visible: Whether the caller may see jobs of an index; it gets the name of the index, or None.

        Returns:
            The records, and None in place of a cursor after the last page.

        Raises:
            InvalidInput: `cursor` is not that of a page.
        """
        start = 0
        if cursor is not None:
            rank = await call_redis(cast("Any", self._redis.zrevrank(redis_keys.JOBS_BY_CREATION, cursor)))
            if rank is None:
                raise InvalidInput("cursor: no such page; start again without one")
            start = cast("int", rank) + 1
        records: list[JobRecord] = []
        expired_ids: list[str] = []
        while len(records) <= limit and (job_ids := await self._list_ids(start, _SCAN_BATCH_SIZE)):
            start += len(job_ids)
            for job_id, raw in zip(job_ids, await self._read_raw_records(job_ids), strict=True):
                if raw is None:
                    expired_ids.append(job_id)
                    continue
                record = job_records.parse_record(raw)
                if record and state in (None, record.state) and is_visible(record.index):
                    records.append(record)
        if expired_ids:
            await call_redis(cast("Any", self._redis.zrem(redis_keys.JOBS_BY_CREATION, *expired_ids)))
        return records[:limit], records[limit - 1].job_id if len(records) > limit else None

    async def cancel(self, job_id: str) -> JobRecord:
        """Cancels a queued job at once, and asks the worker of a running job to stop.

        A queued job that was started before, and handed back, is cancelled by the next worker that takes it, which
        removes what the job has left.

        Returns:
            The record of the job after that. A job that has ended stays as it is.

        Raises:
            JobNotFound: There is no such job.
        """
        while True:
            record, token = await self._read_record_and_token(job_id)
            if record.state in FINAL_STATES:
                return record
            if record.started_at is not None:
                await call_redis(cast("Any", self._redis.hset(redis_keys.job_key(job_id), "cancel", "1")))
                return record
            cancelled = record.model_copy(update={"state": "cancelled", "finished_at": time.time()})
            arguments = job_records.save_job_arguments(
                cancelled, token, job_records.next_token(token), "end", self._settings
            )
            if await call_redis(cast("Any", self._save_job(**arguments))) >= 0:
                return cancelled
            # The token has changed: a worker took the job just now, so that it is read again.

    @contextmanager
    def count_follower(self) -> Iterator[None]:
        """Counts somebody as a follower of a job while the context is open. `iter_events` may be used within it.

        Raises:
            QueueFull: There are as many followers as connections on which to wait for events.
        """
        if self._followers >= self._max_followers:
            raise QueueFull(
                f"{self._followers} event streams are open already: try again in a second, or poll "
                "GET /jobs/{job_id}"
            )
        self._followers += 1
        try:
            yield
        finally:
            self._followers -= 1

    async def iter_events(
        self, job_id: str, last_id: str = _BEFORE_FIRST_EVENT
    ) -> AsyncIterator[tuple[str, JobRecord]]:
        """Yields the events of a job: the id of each event, and the record that the job had then.

        Ids come from the clock of Redis. After a step back of the clock, or in a Redis that was restored from an older
        state, `last_id` may lie after the latest event; then the events are yielded from the first one on.

        Args:
            job_id: Id of the job.
            last_id: Id of the event after which to start.

        Raises:
            JobNotFound: There is no such job, or it has expired meanwhile.
            InvalidInput: `last_id` is not an event id.
        """
        if any(not part.isdecimal() or int(part) >= 2**64 for part in last_id.split("-", 1)):
            raise InvalidInput(f"event id: expected the id of an event, got {last_id!r}")
        while True:
            has_ended = (await self.read_job(job_id)).state in FINAL_STATES
            if _parse_event_id(last_id) > await self._read_latest_event_id(job_id):
                last_id = _BEFORE_FIRST_EVENT
            with translate_redis_errors():
                streams = await self._following_redis.xread(
                    {redis_keys.events_key(job_id): last_id}, block=None if has_ended else BLOCK_MS
                )
                entries = [entry for _, entries in cast("StreamEntries", streams or []) for entry in entries]
                events = [(event_id, fields.get("record")) for event_id, fields in entries]
            for last_id, raw in events:
                if record := job_records.parse_record(raw):
                    yield last_id, record
                    has_ended = has_ended or record.state in FINAL_STATES
            if has_ended:
                return

    async def active_jobs(self, limit_s: float = REDIS_WAIT_S) -> dict[str, str]:
        """Returns, for each index that is being built or changed, the id of the queued or running job.

        Args:
            limit_s: Longest time in seconds to wait for Redis.
        """
        return await call_redis(cast("Any", self._redis.hgetall(redis_keys.BUILDING)), limit_s)

    async def _read_record_and_token(self, job_id: str) -> tuple[JobRecord, int]:
        """Returns the record of a job and its fencing token."""
        key = redis_keys.job_key(job_id)
        reply = await call_redis(cast("Any", self._redis.hmget(key, ["record", "token"])))
        with translate_redis_errors():
            raw, token = require_list(reply, length=2)
            record = job_records.parse_record(raw)
            number = 0 if record is None else job_records.parse_token(token)
            if record is not None and record.job_id != job_id:
                raise UnexpectedReply("the record of another job")
        if record is None:
            raise job_not_found(job_id)
        return record, number

    async def _read_latest_event_id(self, job_id: str) -> tuple[int, int]:
        """Returns the id of the latest event of a job, as its time and its number."""
        read = self._redis.xrevrange(redis_keys.events_key(job_id), count=1)
        entries = await call_redis(cast("Any", read))
        with translate_redis_errors():
            return _parse_event_id(entries[0][0] if entries else _BEFORE_FIRST_EVENT)

    async def _list_ids(self, start: int, count: int) -> list[str]:
        """Returns the ids of `count` jobs, newest first, after skipping `start` of them."""
        read = self._redis.zrevrange(redis_keys.JOBS_BY_CREATION, start, start + count - 1)
        with translate_redis_errors():
            return require_list(await call_redis(cast("Any", read)))

    async def _read_raw_records(self, job_ids: Sequence[str]) -> list[str | None]:
        async with self._redis.pipeline(transaction=False) as pipe:
            for job_id in job_ids:
                pipe.hget(redis_keys.job_key(job_id), "record")
            return await call_redis(pipe.execute())


def job_not_found(job_id: str) -> JobNotFound:
    """Returns the error for a job that does not exist, or that the caller may not see."""
    return JobNotFound(f"no job {job_id!r}: GET /jobs lists them")


def _parse_event_id(event_id: str) -> tuple[int, int]:
    milliseconds, _, number = event_id.partition("-")
    return int(milliseconds), int(number or 0)


def _scoped_sha256(idempotency_key: str, lane: str, job: Job) -> str:
    """Returns the hash under which an idempotency key is remembered.

    Two callers may use the same key, and a caller may use it for calls of different paths. The name of an index to
    build is in the body of its request.
    """
    index = None if isinstance(job, BuildJob) else job.index
    return hashlib.sha256(json.dumps([lane, job.kind, index, idempotency_key]).encode()).hexdigest()


def _encode(job: Job) -> tuple[str, str, int]:
    """Returns the job as a message, the sha256 of what the caller sent, and the bytes of the message."""
    body = job.model_dump_json(exclude={"job_id", "request_id", "traceparent"})
    message = job.model_dump_json()
    return message, hashlib.sha256(body.encode()).hexdigest(), len(message.encode())
