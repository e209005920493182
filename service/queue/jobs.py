"""`JobBroker`: how the web process submits, lists, follows and cancels the jobs in Redis."""

import asyncio
import hashlib
import time
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any, cast

from redis.asyncio import Redis

from bergson_core.errors import IndexBusy, IndexExists, InvalidInput, JobNotFound
from bergson_core.storage.manifest import MANIFEST_FILE
from service.queue.replies import BLOCK_MS, StreamEntries, translate_redis_errors
from worker.messages import FINAL_STATES, BuildJob, Job, JobRecord, JobState
from worker.queue import job_queue, lua_scripts, redis_keys
from worker.settings import Settings
from worker.telemetry import tracing

_IDEMPOTENCY_S = 24 * 3600
_SCAN_BATCH_SIZE = 100
_BEFORE_FIRST_EVENT = "0"


class JobBroker:
    """The jobs in Redis, as the web process sees them.

    Every method raises `RedisUnavailable` when Redis does not answer, and `RedisFull` when it is full.

    Args:
        settings: The settings of the process.
        redis: Connections for commands that are answered at once.
        following_redis: Connections that wait in Redis for the events of a job.
    """

    def __init__(self, settings: Settings, redis: Redis, following_redis: Redis):
        self._settings, self._redis, self._following_redis = settings, redis, following_redis
        self._submit_job = redis.register_script(lua_scripts.SUBMIT_JOB)
        self._save_job = redis.register_script(lua_scripts.SAVE_JOB)

    async def submit(self, job: Job, idempotency_key: str | None = None, lane: str = "") -> JobRecord:
        """Queues a job.

        Args:
            job: The job.
            idempotency_key: If this key came with the same job before, nothing is queued again.
            lane: Id of the API key. The jobs of one lane wait for each other, and lanes take turns.

        Returns:
            The record of the queued job, or of the one that the idempotency key made before.

        Raises:
            IndexExists: For a build: an index of this name is published or being built.
            IndexBusy: For any other job: another job is changing the index.
            InvalidInput: The idempotency key came with a different job before.
        """
        index, is_build = job.index or "", isinstance(job, BuildJob)
        record = JobRecord(
            job_id=job.job_id, kind=job.kind, index=job.index, state="queued", created_at=time.time()
        )
        job = job.model_copy(update={"traceparent": tracing.traceparent()})
        message, body_sha256 = await asyncio.to_thread(_encode, job)
        is_published = is_build and (self._settings.indexes_dir / index / MANIFEST_FILE).exists()
        key_sha256 = hashlib.sha256((idempotency_key or "").encode()).hexdigest()
        keys = [
            redis_keys.IDEMPOTENCY_PREFIX + key_sha256,
            redis_keys.BUILDING,
            redis_keys.job_key(job.job_id),
            redis_keys.events_key(job.job_id),
            redis_keys.JOBS_BY_CREATION,
            redis_keys.JOB_LANES,
            redis_keys.JOB_LANE_PREFIX + lane,
        ]
        arguments = [
            *(index, job.job_id, body_sha256, message, record.model_dump_json(), record.created_at),
            *(int(is_published), _IDEMPOTENCY_S if idempotency_key else "", lane),
        ]
        with translate_redis_errors():
            outcome, *details = await cast("Any", self._submit_job(keys=keys, args=arguments))
        if outcome == "taken" and not is_build:
            raise IndexBusy(
                f"job {details[0]} is at work on {index!r}: follow it, and try again when it has ended"
            )
        if outcome == "taken":
            reason = f"job {details[0]} is building it" if details[0] else "it is published"
            raise IndexExists(f"the name {index!r} is taken, {reason}: choose another")
        if outcome == "known":
            if details[1] != body_sha256:
                raise InvalidInput("this idempotency key came with another body before: use a new one")
            return await self.read_job(details[0])
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
        with translate_redis_errors():
            start = 0
            if cursor is not None:
                rank = await self._redis.zrevrank(redis_keys.JOBS_BY_CREATION, cursor)
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
                    record = job_queue.parse_record(raw)
                    if record and state in (None, record.state) and is_visible(record.index):
                        records.append(record)
            if expired_ids:
                await self._redis.zrem(redis_keys.JOBS_BY_CREATION, *expired_ids)
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
            with translate_redis_errors():
                if record.started_at is not None:
                    await cast("Any", self._redis.hset(redis_keys.job_key(job_id), "cancel", "1"))
                    return record
                cancelled = record.model_copy(update={"state": "cancelled", "finished_at": time.time()})
                arguments = job_queue.save_job_arguments(
                    cancelled, token, token + 1, "end", self._settings.keep_jobs_s
                )
                if await cast("Any", self._save_job(**arguments)) >= 0:
                    return cancelled
            # The token has changed: a worker took the job just now, so that it is read again.

    async def iter_events(
        self, job_id: str, last_id: str = _BEFORE_FIRST_EVENT
    ) -> AsyncIterator[tuple[str, JobRecord]]:
        """Yields the events of a job: the id of each event, and the record that the job had then.

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
            with translate_redis_errors():
                streams = await self._following_redis.xread(
                    {redis_keys.events_key(job_id): last_id}, block=None if has_ended else BLOCK_MS
                )
            for _, entries in cast("StreamEntries", streams or []):
                for last_id, fields in entries:
                    if record := job_queue.parse_record(fields.get("record")):
                        yield last_id, record
                        has_ended = has_ended or record.state in FINAL_STATES
            if has_ended:
                return

    async def active_jobs(self) -> dict[str, str]:
        """Returns, for each index that is being built or changed, the id of the queued or running job."""
        with translate_redis_errors():
            return await cast("Any", self._redis.hgetall(redis_keys.BUILDING))

    async def _read_record_and_token(self, job_id: str) -> tuple[JobRecord, int]:
        """Returns the record of a job and its fencing token."""
        with translate_redis_errors():
            raw, token = await cast("Any", self._redis.hmget(redis_keys.job_key(job_id), ["record", "token"]))
        record = job_queue.parse_record(raw)
        if record is None:
            raise job_not_found(job_id)
        return record, int(token)

    async def _list_ids(self, start: int, count: int) -> list[str]:
        """Returns the ids of `count` jobs, newest first, after skipping `start` of them."""
        return await cast("Any", self._redis.zrevrange(redis_keys.JOBS_BY_CREATION, start, start + count - 1))

    async def _read_raw_records(self, job_ids: Sequence[str]) -> list[str | None]:
        async with self._redis.pipeline(transaction=False) as pipe:
            for job_id in job_ids:
                pipe.hget(redis_keys.job_key(job_id), "record")
            return await pipe.execute()


def job_not_found(job_id: str) -> JobNotFound:
    """Returns the error for a job that does not exist, or that the caller may not see."""
    return JobNotFound(f"no job {job_id!r}: GET /jobs lists them")


def _encode(job: Job) -> tuple[str, str]:
    """Returns the job as a message, and the sha256 of what the caller sent."""
    body = job.model_dump_json(exclude={"job_id", "request_id", "traceparent"})
    return job.model_dump_json(), hashlib.sha256(body.encode()).hexdigest()
