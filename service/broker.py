"""The web process's side of the queue: submit and follow jobs, ask queries, see who is alive.

The keys in Redis are listed in `worker.queue`. Nothing polls: answers for this process arrive on a stream of its
own, which one task reads, and events of a job are waited for in Redis. No torch here.
"""

import asyncio
import hashlib
import logging
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import ExitStack, asynccontextmanager, contextmanager
from typing import Any, cast
from uuid import uuid4

from pydantic import ValidationError
from redis import RedisError
from redis.asyncio import ConnectionPool

from bergson_core.answers import Answer, Estimate
from bergson_core.errors import (
    Cancelled,
    DeadlineExceeded,
    IndexBusy,
    IndexExists,
    IndexNotFound,
    InvalidInput,
    JobNotFound,
    NoWorker,
    QueueFull,
    from_code,
)
from bergson_core.manifest import FILE_NAME
from bergson_core.specs import AttributionQuery
from service.load import QueueLoad, read_load
from service.replies import BLOCK_MS, Replies, Streams, unavailable
from worker import queue, scripts, tracing
from worker.embedded import redis_url
from worker.messages import (
    FINAL_STATES,
    BuildJob,
    EstimateJob,
    Heartbeat,
    Job,
    JobRecord,
    JobState,
    Priority,
    Query,
)
from worker.queries import ask_arguments, query_key, waiting_keys
from worker.redis_client import connect_async
from worker.settings import Settings

logger = logging.getLogger(__name__)

_CONNECTIONS, _FOLLOWERS = 32, 256
_ALIVE_S = 1.0  # for so long is a worker that was seen alive not looked for again
_IDEMPOTENCY_S = 24 * 3600
_PAGE = 100
_START = "0"


class Broker:
    """What the web process asks of Redis. Every method raises `RedisUnavailable` where it does not answer."""

    def __init__(self, settings: Settings, url: str):
        self._settings = settings
        self._redis = connect_async(url, _CONNECTIONS)
        self._follow = connect_async(url, _FOLLOWERS)
        self._replies = Replies(connect_async(url, 1))
        self._submit = self._redis.register_script(scripts.SUBMIT)
        self._save = self._redis.register_script(scripts.SAVE)
        self._ask = self._redis.register_script(scripts.ASK)
        self._alive_until = 0.0

    @classmethod
    @asynccontextmanager
    async def connect(cls, settings: Settings) -> "AsyncIterator[Broker]":
        """A broker on the Redis of `settings`, which need not answer yet; the embedded one is started."""
        stack = ExitStack()
        try:
            url = await asyncio.to_thread(stack.enter_context, redis_url(settings))
            broker = cls(settings, url)
            broker._replies.start()
            try:
                yield broker
            finally:
                await broker._replies.close()
                await broker._follow.aclose()
                await broker._redis.aclose()
        finally:
            await asyncio.to_thread(stack.close)

    @property
    def pool(self) -> ConnectionPool:
        """Connections to the same Redis."""
        return self._redis.connection_pool

    async def ping(self) -> None:
        """Returns where Redis answers."""
        with _reaching_redis():
            await cast("Any", self._redis.ping())

    async def workers(self) -> list[Heartbeat]:
        """The live workers, by id."""
        with _reaching_redis():
            ids = sorted(await cast("Any", self._redis.smembers(queue.WORKERS)))
            raw = await cast("Any", self._redis.mget([queue.worker_key(one) for one in ids])) if ids else []
            dead = [one for one, beat in zip(ids, raw, strict=True) if beat is None]
            if dead:
                await cast("Any", self._redis.srem(queue.WORKERS, *dead))
        return [beat for one in raw if one is not None and (beat := _read_heartbeat(one)) is not None]

    async def load(self) -> QueueLoad:
        """How much there is to do, and who does it."""
        workers = await self.workers()
        with _reaching_redis():
            return await read_load(self._redis, workers)

    # Queries

    async def ask(
        self,
        query: AttributionQuery,
        request_id: str,
        timeout_s: float,
        lane: str = "",
        priority: Priority = "interactive",
    ) -> Answer:
        """The answer of whichever worker takes the query. The queries of one `lane` wait for each other.

        A query that nobody waits for any more, since this was cancelled or took too long, is withdrawn.
        Raises `NoWorker`, `QueueFull`, `DeadlineExceeded` after `timeout_s` seconds, `IndexBusy` while the index
        is being built for the first time, and whatever error the worker met.
        """
        now, query_id = time.time(), uuid4().hex
        message = Query(
            query_id=query_id,
            reply_to=self._replies.stream,
            request_id=request_id,
            traceparent=tracing.traceparent(),
            sent_at=now,
            deadline=now + timeout_s,
            priority=priority,
            query=query,
        )
        with self._replies.expected(query_id) as future:
            await self._require_worker()
            await self._enqueue(message, lane)
            # No cancelling timeout around the two lines above: see `replies.stop`.
            try:
                await asyncio.wait([future], timeout=max(0.0, message.deadline - time.time()))
            finally:
                if not future.done():
                    await asyncio.shield(self._withdraw(message))
            if not future.done():
                if self._replies.failure:
                    raise unavailable(self._replies.failure)
                raise DeadlineExceeded(f"no answer within {timeout_s:g} s; ask again or wait longer")
            reply = future.result()
        if reply.answer is not None:
            return reply.answer
        problem = reply.problem
        error = from_code(problem.code, problem.detail) if problem else from_code("", "the answer is empty")
        if isinstance(error, IndexNotFound) and (job_id := (await self.building()).get(query.index)):
            raise IndexBusy(f"index {query.index!r} is being built: follow /jobs/{job_id}")
        raise error

    async def _require_worker(self) -> None:
        if time.monotonic() >= self._alive_until:
            if not await self.workers():
                raise NoWorker("no worker is alive: start one with `python -m worker`")
            self._alive_until = time.monotonic() + _ALIVE_S

    async def _enqueue(self, message: Query, lane: str) -> None:
        with _reaching_redis():
            outcome = await cast("Any", self._ask(**ask_arguments(message, lane, self._settings)))
        if outcome != "asked":
            wait_s, most = self._settings.max_queue_wait_s, self._settings.max_queued_queries
            why = f"{most} queries wait" if outcome == "full" else f"a query has waited for {wait_s:g} s"
            raise QueueFull(f"{why} already: try again in a second, or start more workers")

    async def _withdraw(self, message: Query) -> None:
        """Takes a query off the queue unless a worker has it; then its answer goes to nobody."""
        query_id = message.query_id
        waiting, since, _ = waiting_keys(message.priority)
        try:
            if await cast("Any", self._redis.zrem(waiting, query_id)):
                await self._redis.zrem(since, query_id)
                await self._redis.delete(query_key(query_id))
        except RedisError as error:
            logger.warning("query %s stays in the queue until its deadline: %s", query_id, error)

    # Jobs

    async def submit(self, job: Job, idempotency_key: str | None = None) -> JobRecord:
        """The job, queued; for an `idempotency_key` that came before with the same body, the job it made then.

        Raises `IndexExists` for a build where an index of that name is published or on its way, `IndexBusy` for
        another job where one is at work on the index, and `InvalidInput` where the key came with another body.
        """
        index, is_build = job.index or "", isinstance(job, BuildJob)
        record = JobRecord(
            job_id=job.job_id, kind=job.kind, index=job.index, state="queued", created_at=time.time()
        )
        job = job.model_copy(update={"traceparent": tracing.traceparent()})
        message, body = await asyncio.to_thread(_encode, job)
        taken = is_build and (self._settings.indexes_dir / index / FILE_NAME).exists()
        key = hashlib.sha256((idempotency_key or "").encode()).hexdigest()
        keys = [
            *(queue.IDEMPOTENCY + key, queue.BUILDING, queue.job_key(job.job_id)),
            *(queue.events_key(job.job_id), queue.JOBS, queue.CREATED),
        ]
        arguments = [
            *(index, job.job_id, body, message, record.model_dump_json(), record.created_at),
            *(int(taken), _IDEMPOTENCY_S if idempotency_key else ""),
        ]
        with _reaching_redis():
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
            return await self.job(details[0])
        return record

    async def job(self, job_id: str) -> JobRecord:
        """The job as it is now. Raises `JobNotFound`."""
        return (await self._read(job_id))[0]

    async def jobs(
        self,
        state: JobState | None = None,
        cursor: str | None = None,
        limit: int = 50,
        shown: Callable[[str | None], bool] = lambda index: True,
    ) -> tuple[list[JobRecord], str | None]:
        """Up to `limit` jobs, newest first, and the cursor of the next page, None after the last one.

        Of the jobs of indexes alone that are `shown`.
        """
        with _reaching_redis():
            start = 0
            if cursor is not None:
                rank = await self._redis.zrevrank(queue.CREATED, cursor)
                if rank is None:
                    raise InvalidInput("cursor: no such page; start again without one")
                start = cast("int", rank) + 1
            found: list[JobRecord] = []
            gone: list[str] = []
            while ids := await cast("Any", self._redis.zrevrange(queue.CREATED, start, start + _PAGE - 1)):
                start += len(ids)
                for job_id, raw in zip(ids, await self._raw_records(ids), strict=True):
                    if raw is None:
                        gone.append(job_id)
                    elif (record := queue.read_record(raw)) and state in (None, record.state):
                        found += [record] if shown(record.index) else []
                if len(found) > limit:
                    break
            if gone:
                await self._redis.zrem(queue.CREATED, *gone)
        return found[:limit], found[limit - 1].job_id if len(found) > limit else None

    async def cancel(self, job_id: str) -> JobRecord:
        """Cancels a queued job at once, and asks the worker of a running one to stop. Raises `JobNotFound`."""
        while True:
            record, token = await self._read(job_id)
            if record.state in FINAL_STATES:
                return record
            with _reaching_redis():
                if record.state == "running":
                    await cast("Any", self._redis.hset(queue.job_key(job_id), "cancel", "1"))
                    return record
                ended = record.model_copy(update={"state": "cancelled", "finished_at": time.time()})
                arguments = queue.save_arguments(
                    ended, token, token + 1, "end", "web", self._settings.keep_jobs_s
                )
                if await cast("Any", self._save(**arguments)) >= 0:  # or else a worker has just taken it
                    return ended

    async def events(self, job_id: str, last_id: str = _START) -> AsyncIterator[tuple[str, JobRecord]]:
        """(event id, the job as it was then) after the event `last_id`; ends after a final state.

        Raises `JobNotFound`, and `InvalidInput` where `last_id` is no event id.
        """
        if any(not part.isdecimal() or int(part) >= 2**64 for part in last_id.split("-", 1)):
            raise InvalidInput(f"event id: expected one that an event bore, got {last_id!r}")
        while True:
            ended = (await self.job(job_id)).state in FINAL_STATES
            with _reaching_redis():
                found = await self._follow.xread(
                    {queue.events_key(job_id): last_id}, block=None if ended else BLOCK_MS
                )
            for _, entries in cast("Streams", found or []):
                for last_id, fields in entries:
                    if record := queue.read_record(fields.get("record")):
                        yield last_id, record
                        ended = ended or record.state in FINAL_STATES
            if ended:
                return

    async def estimate(self, job: EstimateJob, timeout_s: float) -> Estimate:
        """What a worker finds out; the job is cancelled where nobody waits for it any more.

        Raises `NoWorker`, `DeadlineExceeded` after `timeout_s` seconds, and whatever error the worker met.
        """
        await self._require_worker()
        await self.submit(job)
        try:
            async with asyncio.timeout(timeout_s):
                async for _, record in self.events(job.job_id):
                    if record.estimate is not None:
                        return record.estimate
                    if record.error is not None:
                        raise from_code(record.error.code, record.error.detail)
        except TimeoutError:
            raise DeadlineExceeded(
                f"no estimate within {timeout_s:g} s; the workers may be busy (GET /jobs): wait longer, or ask later"
            ) from None
        finally:
            await asyncio.shield(self.cancel(job.job_id))
        raise Cancelled("the estimate was cancelled")

    async def building(self) -> dict[str, str]:
        """Index name → id of the job that is to build or change it, queued or running."""
        with _reaching_redis():
            return await cast("Any", self._redis.hgetall(queue.BUILDING))

    async def _read(self, job_id: str) -> tuple[JobRecord, int]:
        """A job and its fencing token."""
        with _reaching_redis():
            raw, token = await cast("Any", self._redis.hmget(queue.job_key(job_id), ["record", "token"]))
        record = queue.read_record(raw)
        if record is None:
            raise no_job(job_id)
        return record, int(token)

    async def _raw_records(self, job_ids: Sequence[str]) -> list[str | None]:
        async with self._redis.pipeline(transaction=False) as pipe:
            for job_id in job_ids:
                pipe.hget(queue.job_key(job_id), "record")
            return await pipe.execute()


def no_job(job_id: str) -> JobNotFound:
    """What is said of a job that is not there, or not there for who asks."""
    return JobNotFound(f"no job {job_id!r}: GET /jobs lists them")


@contextmanager
def _reaching_redis() -> Iterator[None]:
    try:
        yield
    except RedisError as error:
        raise unavailable(str(error)) from error


def _encode(job: Job) -> tuple[str, str]:
    """The job as a message, and the sha256 of what the caller sent."""
    body = job.model_dump_json(exclude={"job_id", "request_id", "traceparent"})
    return job.model_dump_json(), hashlib.sha256(body.encode()).hexdigest()


def _read_heartbeat(raw: str) -> Heartbeat | None:
    try:
        return Heartbeat.model_validate_json(raw)
    except ValidationError as error:
        logger.warning("a heartbeat cannot be read: %s", error)
        return None
