"""`Broker`: the web process's side of the queue, with its jobs (`service.queue.jobs`), queries and live workers.

`worker.queue.redis_keys` lists the keys in Redis. Nothing polls: the answers for this process arrive on a stream of its
own, which one task reads (`service.queue.replies`), and Redis itself waits for the events of a job.
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
from worker.queue.redis_errors import unavailable_error
from worker.queue.redis_keys import query_key, waiting_keys
from worker.settings import Settings
from worker.telemetry import tracing

logger = logging.getLogger(__name__)

_MAX_CONNECTIONS, _MAX_FOLLOWERS = 32, 256
_WORKER_CHECK_INTERVAL_S = 1.0


class Broker(JobBroker):
    """The connection of a web process to the queue: it submits jobs and queries, and lists workers.

    Every method raises `RedisUnavailable` when Redis does not answer, and `RedisFull` when it is full.
    """

    def __init__(self, settings: Settings, url: str):
        super().__init__(settings, connect_async(url, _MAX_CONNECTIONS), connect_async(url, _MAX_FOLLOWERS))
        self._replies = ReplyReader(connect_async(url, 1))
        self._ask = self._redis.register_script(lua_scripts.ASK_QUERY)
        self._next_worker_check = 0.0

    @classmethod
    @asynccontextmanager
    async def connect(cls, settings: Settings) -> "AsyncIterator[Broker]":
        """Yields a broker on the Redis of `settings`, and closes it at the end.

        An embedded Redis is started; another one need not answer yet.
        """
        stack = ExitStack()
        try:
            url = await asyncio.to_thread(stack.enter_context, redis_url(settings))
            broker = cls(settings, url)
            broker._replies.start()
            try:
                yield broker
            finally:
                await broker._replies.close()
                await broker._following_redis.aclose()
                await broker._redis.aclose()
        finally:
            await asyncio.to_thread(stack.close)

    @property
    def pool(self) -> ConnectionPool:
        """The pool of connections to Redis."""
        return self._redis.connection_pool

    async def ping(self) -> None:
        """Checks that Redis answers and accepts writes: this one has no effect, and is refused where others are.

        Raises:
            RedisFull: Redis has no memory left.
            RedisUnavailable: Redis does not answer, or accepts no writes for another reason.
        """
        with translate_redis_errors():
            await cast("Any", self._redis.zadd(redis_keys.QUERY_LEASES, {"": 0}, xx=True))

    async def list_workers(self) -> list[Heartbeat]:
        """Returns the latest heartbeats of the live workers, in the order of their ids."""
        with translate_redis_errors():
            worker_ids = sorted(await cast("Any", self._redis.smembers(redis_keys.WORKERS)))
            if not worker_ids:
                return []
            keys = [redis_keys.worker_key(worker_id) for worker_id in worker_ids]
            messages = dict(zip(worker_ids, await cast("Any", self._redis.mget(keys)), strict=True))
            dead_ids = [worker_id for worker_id, message in messages.items() if message is None]
            if dead_ids:
                await cast("Any", self._redis.srem(redis_keys.WORKERS, *dead_ids))
        heartbeats = [_parse_heartbeat(message) for message in messages.values() if message is not None]
        return [heartbeat for heartbeat in heartbeats if heartbeat is not None]

    async def read_load(self) -> QueueLoad:
        """Returns how much work waits, and who is alive to do it."""
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
        """Has a worker answer a query.

        The query is withdrawn when nobody waits for it any more, because the caller was cancelled or the time is up.

        Args:
            query: The query.
            request_id: Id of the HTTP request, for the worker's log.
            timeout_s: Seconds to wait for the answer.
            lane: Id of the API key. The queries of one lane wait for each other, and lanes take turns.
            priority: The queue in which the query waits.

        Raises:
            NoWorker: No worker is alive.
            QueueFull: Too many queries wait, or one has waited for too long.
            DeadlineExceeded: There was no answer within `timeout_s` seconds.
            IndexBusy: The index is being built for the first time.
            RedisUnavailable: Redis does not answer, or it is full (`RedisFull`).
            BergsonError: Whatever error the worker met.
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
            # No timeout that cancels may enclose the two lines above: see `cancel_and_wait`.
            try:
                await asyncio.wait([future], timeout=max(0.0, message.deadline - time.time()))
            finally:
                if not future.done():
                    await asyncio.shield(self._withdraw(message))
            if not future.done():
                if self._replies.failure:
                    raise RedisUnavailable.because(self._replies.failure)
                await self.ping()  # the answer may be there, and Redis too full to take it
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
        """Raises `NoWorker` if no worker is alive. After it has seen one, it does not look again for a second."""
        if time.monotonic() >= self._next_worker_check:
            if not await self.list_workers():
                # The heartbeats of live workers do not arrive in a Redis that accepts no writes.
                await self.ping()
                raise NoWorker("no worker is alive: start one with `bergson worker`")
            self._next_worker_check = time.monotonic() + _WORKER_CHECK_INTERVAL_S

    async def _enqueue(self, message: Query, lane: str) -> None:
        with translate_redis_errors():
            outcome = await cast("Any", self._ask(**ask_query_arguments(message, lane, self._settings)))
        if outcome != "asked":
            max_wait_s, max_queries = self._settings.max_queue_wait_s, self._settings.max_queued_queries
            reason = (
                f"{max_queries} queries wait"
                if outcome == "full"
                else f"a query has waited for {max_wait_s:g} s"
            )
            raise QueueFull(f"{reason} already: try again in a second, or start more workers")

    async def _withdraw(self, message: Query) -> None:
        """Takes a query off the queue. A worker that has taken it notices before its next long step."""
        query_id = message.query_id
        waiting, since, _ = waiting_keys(message.priority)
        try:
            if await cast("Any", self._redis.zrem(waiting, query_id)):
                await self._redis.zrem(since, query_id)
            await self._redis.delete(query_key(query_id))
        except RedisError as error:
            logger.warning(
                "query %s stays in the queue until its deadline: %s", query_id, unavailable_error(error)
            )

    async def estimate(self, job: EstimateJob, timeout_s: float, lane: str = "") -> Estimate:
        """Has a worker estimate the cost of a build.

        The job is cancelled when nobody waits for it any more.

        Args:
            job: The job.
            timeout_s: Seconds to wait for the estimate.
            lane: Id of the API key.

        Raises:
            NoWorker: No worker is alive.
            DeadlineExceeded: There was no estimate within `timeout_s` seconds.
            Cancelled: Somebody cancelled the job.
            RedisUnavailable: Redis does not answer.
            BergsonError: Whatever error the worker met.
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


def _parse_heartbeat(message: str) -> Heartbeat | None:
    try:
        return Heartbeat.model_validate_json(message)
    except ValidationError as error:
        logger.warning("a heartbeat cannot be read: %s", error)
        return None
