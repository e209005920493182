"""The jobs of the queue, as the web process sees them: submitted, listed, followed, cancelled. No torch here."""

import asyncio
import hashlib
import time
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any, cast

from redis.asyncio import Redis

from bergson_core.errors import IndexBusy, IndexExists, InvalidInput, JobNotFound
from bergson_core.storage.manifest import MANIFEST_FILE
from service.queue.replies import BLOCK_MS, Streams, translate_redis_errors
from worker.messages import FINAL_STATES, BuildJob, Job, JobRecord, JobState
from worker.queue import job_queue, lua_scripts, redis_keys
from worker.settings import Settings
from worker.telemetry import tracing

_IDEMPOTENCY_S = 24 * 3600
_SCAN_BATCH_SIZE = 100
_BEFORE_FIRST_EVENT = "0"


class JobBroker:
    """What is asked of jobs in Redis, `follow` being the connections that wait there for events.

    Every method raises `RedisUnavailable` where it does not answer.
    """

    def __init__(self, settings: Settings, redis: Redis, follow: Redis):
        self._settings, self._redis, self._follow = settings, redis, follow
        self._submit = redis.register_script(lua_scripts.SUBMIT_JOB)
        self._save = redis.register_script(lua_scripts.SAVE_JOB)

    async def submit(self, job: Job, idempotency_key: str | None = None, lane: str = "") -> JobRecord:
        """The job, queued; for an `idempotency_key` that came before with the same body, the job it made then.

        The jobs of one `lane` wait for each other; lanes take turns.
        Raises `IndexExists` for a build where an index of that name is published or on its way, `IndexBusy` for
        another job where one is at work on the index, and `InvalidInput` where the key came with another body.
        """
        index, is_build = job.index or "", isinstance(job, BuildJob)
        record = JobRecord(
            job_id=job.job_id, kind=job.kind, index=job.index, state="queued", created_at=time.time()
        )
        job = job.model_copy(update={"traceparent": tracing.traceparent()})
        message, body = await asyncio.to_thread(_encode, job)
        taken = is_build and (self._settings.indexes_dir / index / MANIFEST_FILE).exists()
        key = hashlib.sha256((idempotency_key or "").encode()).hexdigest()
        keys = [
            *(redis_keys.IDEMPOTENCY_PREFIX + key, redis_keys.BUILDING, redis_keys.job_key(job.job_id)),
            *(
                redis_keys.events_key(job.job_id),
                redis_keys.JOBS_BY_CREATION,
                redis_keys.JOB_LANES,
                redis_keys.JOB_LANE_PREFIX + lane,
            ),
        ]
        arguments = [
            *(index, job.job_id, body, message, record.model_dump_json(), record.created_at),
            *(int(taken), _IDEMPOTENCY_S if idempotency_key else "", lane),
        ]
        with translate_redis_errors():
            outcome, *details = await cast("Any", self._submit(keys=keys, args=arguments))
        if outcome == "taken" and not is_build:
            raise IndexBusy(
                f"job {details[0]} is at work on {index!r}: follow it, and try again when it has ended"
            )
        if outcome == "taken":
            where = f"job {details[0]} is building it" if details[0] else "it is published"
            raise IndexExists(f"the name {index!r} is taken, {where}: choose another")
        if outcome == "known":
            if details[1] != body:
                raise InvalidInput("this idempotency key came with another body before: use a new one")
            return await self.read_job(details[0])
        return record

    async def read_job(self, job_id: str) -> JobRecord:
        """The job as it is now. Raises `JobNotFound`."""
        return (await self._read(job_id))[0]

    async def list_jobs(
        self,
        state: JobState | None = None,
        cursor: str | None = None,
        limit: int = 50,
        shown: Callable[[str | None], bool] = lambda index: True,
    ) -> tuple[list[JobRecord], str | None]:
        """Up to `limit` jobs, newest first, and the cursor of the next page, None after the last one.

        Of the jobs of indexes alone that are `shown`.
        """
        with translate_redis_errors():
            start = 0
            if cursor is not None:
                rank = await self._redis.zrevrank(redis_keys.JOBS_BY_CREATION, cursor)
                if rank is None:
                    raise InvalidInput("cursor: no such page; start again without one")
                start = cast("int", rank) + 1
            found: list[JobRecord] = []
            gone: list[str] = []
            while ids := await cast(
                "Any", self._redis.zrevrange(redis_keys.JOBS_BY_CREATION, start, start + _SCAN_BATCH_SIZE - 1)
            ):
                start += len(ids)
                for job_id, raw in zip(ids, await self._raw_records(ids), strict=True):
                    if raw is None:
                        gone.append(job_id)
                    elif (record := job_queue.parse_record(raw)) and state in (None, record.state):
                        found += [record] if shown(record.index) else []
                if len(found) > limit:
                    break
            if gone:
                await self._redis.zrem(redis_keys.JOBS_BY_CREATION, *gone)
        return found[:limit], found[limit - 1].job_id if len(found) > limit else None

    async def cancel(self, job_id: str) -> JobRecord:
        """Cancels a queued job at once, and asks the worker of a running one to stop. Raises `JobNotFound`."""
        while True:
            record, token = await self._read(job_id)
            if record.state in FINAL_STATES:
                return record
            with translate_redis_errors():
                if record.state == "running":
                    await cast("Any", self._redis.hset(redis_keys.job_key(job_id), "cancel", "1"))
                    return record
                ended = record.model_copy(update={"state": "cancelled", "finished_at": time.time()})
                arguments = job_queue.save_job_arguments(
                    ended, token, token + 1, "end", self._settings.keep_jobs_s
                )
                if await cast("Any", self._save(**arguments)) >= 0:  # or else a worker has just taken it
                    return ended

    async def iter_events(
        self, job_id: str, last_id: str = _BEFORE_FIRST_EVENT
    ) -> AsyncIterator[tuple[str, JobRecord]]:
        """(event id, the job as it was then) after the event `last_id`; ends after a final state.

        Raises `JobNotFound`, and `InvalidInput` where `last_id` is no event id.
        """
        if any(not part.isdecimal() or int(part) >= 2**64 for part in last_id.split("-", 1)):
            raise InvalidInput(f"event id: expected one that an event bore, got {last_id!r}")
        while True:
            ended = (await self.read_job(job_id)).state in FINAL_STATES
            with translate_redis_errors():
                found = await self._follow.xread(
                    {redis_keys.events_key(job_id): last_id}, block=None if ended else BLOCK_MS
                )
            for _, entries in cast("Streams", found or []):
                for last_id, fields in entries:
                    if record := job_queue.parse_record(fields.get("record")):
                        yield last_id, record
                        ended = ended or record.state in FINAL_STATES
            if ended:
                return

    async def active_jobs(self) -> dict[str, str]:
        """Index name → id of the job that is to build or change it, queued or running."""
        with translate_redis_errors():
            return await cast("Any", self._redis.hgetall(redis_keys.BUILDING))

    async def _read(self, job_id: str) -> tuple[JobRecord, int]:
        """A job and its fencing token."""
        with translate_redis_errors():
            raw, token = await cast("Any", self._redis.hmget(redis_keys.job_key(job_id), ["record", "token"]))
        record = job_queue.parse_record(raw)
        if record is None:
            raise job_not_found(job_id)
        return record, int(token)

    async def _raw_records(self, job_ids: Sequence[str]) -> list[str | None]:
        async with self._redis.pipeline(transaction=False) as pipe:
            for job_id in job_ids:
                pipe.hget(redis_keys.job_key(job_id), "record")
            return await pipe.execute()


def job_not_found(job_id: str) -> JobNotFound:
    """What is said of a job that is not there, or not there for who asks."""
    return JobNotFound(f"no job {job_id!r}: GET /jobs lists them")


def _encode(job: Job) -> tuple[str, str]:
    """The job as a message, and the sha256 of what the caller sent."""
    body = job.model_dump_json(exclude={"job_id", "request_id", "traceparent"})
    return job.model_dump_json(), hashlib.sha256(body.encode()).hexdigest()
