"""The web process's side of the queue: jobs (`service.queue.jobs`), queries, and who is alive.

The keys in Redis are listed in `worker.queue.redis_keys`. Nothing polls: answers for this process arrive on a stream of its
own, which one task reads, and events of a job are waited for in Redis. No torch here.
"""

import asyncio
import logging
import time
from collections.abc import AsyncIterator
from contextlib import ExitStack, asynccontextmanager
from typing import Any, cast
from uuid import uuid4

from pydantic import ValidationError
from redis import RedisError
from redis.asyncio import ConnectionPool

from bergson_core.errors import (
    Cancelled,
    DeadlineExceeded,
    IndexBusy,
    IndexNotFound,
    NoWorker,
    QueueFull,
    RedisUnavailable,
    from_code,
)
from bergson_core.schemas.results import Answer, Estimate
from service.queue.jobs import JobBroker
from service.queue.queue_load import QueueLoad, read_queue_load
from service.queue.replies import ReplyReader, translate_redis_errors
from worker.messages import EstimateJob, Heartbeat, Priority, Query, ServiceQuery
from worker.queue import lua_scripts, redis_keys
from worker.queue.embedded_redis import redis_url
from worker.queue.query_queue import ask_query_arguments
from worker.queue.redis_client import connect_async
from worker.queue.redis_keys import query_key, waiting_keys
from worker.settings import Settings
from worker.telemetry import tracing

logger = logging.getLogger(__name__)

_CONNECTIONS, _FOLLOWERS = 32, 256
_ALIVE_S = 1.0  # for so long is a worker that was seen alive not looked for again


class Broker(JobBroker):
    """What the web process asks of Redis: of jobs, of queries, of workers.

    Every method raises `RedisUnavailable` where it does not answer.
    """

    def __init__(self, settings: Settings, url: str):
        super().__init__(settings, connect_async(url, _CONNECTIONS), connect_async(url, _FOLLOWERS))
        self._replies = ReplyReader(connect_async(url, 1))
        self._ask = self._redis.register_script(lua_scripts.ASK_QUERY)
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
        with translate_redis_errors():
            await cast("Any", self._redis.ping())

    async def list_workers(self) -> list[Heartbeat]:
        """The live workers, by id."""
        with translate_redis_errors():
            ids = sorted(await cast("Any", self._redis.smembers(redis_keys.WORKERS)))
            raw = (
                await cast("Any", self._redis.mget([redis_keys.worker_key(one) for one in ids]))
                if ids
                else []
            )
            dead = [one for one, beat in zip(ids, raw, strict=True) if beat is None]
            if dead:
                await cast("Any", self._redis.srem(redis_keys.WORKERS, *dead))
        return [beat for one in raw if one is not None and (beat := _read_heartbeat(one)) is not None]

    async def read_load(self) -> QueueLoad:
        """How much there is to do, and who does it."""
        workers = await self.list_workers()
        with translate_redis_errors():
            return await read_queue_load(self._redis, workers)

    # Queries

    async def ask(
        self,
        query: ServiceQuery,
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
        with self._replies.expect_reply(query_id) as future:
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
                    raise RedisUnavailable.because(self._replies.failure)
                raise DeadlineExceeded(f"no answer within {timeout_s:g} s; ask again or wait longer")
            reply = future.result()
        if reply.answer is not None:
            return reply.answer
        problem = reply.problem
        error = from_code(problem.code, problem.detail) if problem else from_code("", "the answer is empty")
        if isinstance(error, IndexNotFound) and (job_id := (await self.active_jobs()).get(query.index)):
            raise IndexBusy(f"index {query.index!r} is being built: follow /jobs/{job_id}")
        raise error

    async def _require_worker(self) -> None:
        if time.monotonic() >= self._alive_until:
            if not await self.list_workers():
                raise NoWorker("no worker is alive: start one with `python -m worker`")
            self._alive_until = time.monotonic() + _ALIVE_S

    async def _enqueue(self, message: Query, lane: str) -> None:
        with translate_redis_errors():
            outcome = await cast("Any", self._ask(**ask_query_arguments(message, lane, self._settings)))
        if outcome != "asked":
            wait_s, most = self._settings.max_queue_wait_s, self._settings.max_queued_queries
            why = f"{most} queries wait" if outcome == "full" else f"a query has waited for {wait_s:g} s"
            raise QueueFull(f"{why} already: try again in a second, or start more workers")

    async def _withdraw(self, message: Query) -> None:
        """Takes a query off the queue. A worker that has it sees that before it begins something long."""
        query_id = message.query_id
        waiting, since, _ = waiting_keys(message.priority)
        try:
            if await cast("Any", self._redis.zrem(waiting, query_id)):
                await self._redis.zrem(since, query_id)
            await self._redis.delete(query_key(query_id))
        except RedisError as error:
            logger.warning("query %s stays in the queue until its deadline: %s", query_id, error)

    async def estimate(self, job: EstimateJob, timeout_s: float, lane: str = "") -> Estimate:
        """What a worker finds out; the job is cancelled where nobody waits for it any more.

        Raises `NoWorker`, `DeadlineExceeded` after `timeout_s` seconds, and whatever error the worker met.
        """
        await self._require_worker()
        await self.submit(job, lane=lane)
        try:
            async with asyncio.timeout(timeout_s):
                async for _, record in self.iter_events(job.job_id):
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


def _read_heartbeat(raw: str) -> Heartbeat | None:
    try:
        return Heartbeat.model_validate_json(raw)
    except ValidationError as error:
        logger.warning("a heartbeat cannot be read: %s", error)
        return None
