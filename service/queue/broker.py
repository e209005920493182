"""`Broker`: the web process's side of the queue, with its jobs (`service.queue.jobs`), queries and live workers.

`worker.queue.redis_keys` lists the keys in Redis. Nothing polls: the answers for this process arrive on a stream of its
own, which one task reads (`service.queue.replies`), and Redis itself waits for the events of a job.
"""

import asyncio
import logging
import time
from collections.abc import AsyncIterator
from contextlib import ExitStack, asynccontextmanager
from typing import Any, Final, cast
from uuid import uuid4

from redis import RedisError
from redis.asyncio import ConnectionPool

from bergson_core.errors import (
    BergsonError,
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
from bergson_core.schemas.totals.results import InfluenceTotals
from bergson_core.schemas.totals.spec import TotalsSpec
from service.queue.heartbeats import read_heartbeats
from service.queue.jobs import JobBroker
from service.queue.queue_load import QueueLoad, read_queue_load
from service.queue.redis_calls import (
    PROBE_WAIT_S,
    REDIS_WAIT_S,
    call_redis,
    cancel_and_wait,
    run_in_background,
)
from service.queue.replies import ReplyReader
from worker.messages import EstimateJob, Heartbeat, Priority, Query, Reply, ServiceQuery
from worker.queue import lua_scripts, redis_keys
from worker.queue.embedded_redis import redis_url
from worker.queue.query_queue import ask_query_arguments
from worker.queue.redis_client import connect_async
from worker.queue.redis_errors import check_replies, describe_eviction, unavailable_error
from worker.queue.redis_keys import query_key, waiting_keys
from worker.settings import Settings
from worker.telemetry import tracing

logger = logging.getLogger(__name__)

NO_WORKER = (
    "no worker is alive: one may be starting, as after a crash with `bergson up`; otherwise start one with "
    "`bergson worker`"
)
"""What an error says where no worker is alive."""
_MAX_CONNECTIONS, _MAX_FOLLOWERS = 32, 256
_WORKER_CHECK_INTERVAL_S = 1.0
GRACE_S: Final = 0.3
"""Seconds after a caller's deadline in which Redis may still answer, before the caller is told that it does not."""


class Broker(JobBroker):
    """The connection of a web process to the queue: it submits jobs and queries, and lists workers.

    Every method raises `RedisUnavailable` when Redis does not answer, and `RedisFull` when it is full. No call waits
    for Redis for longer than `REDIS_WAIT_S`, and calls with a timeout of their own end `GRACE_S` after it.
    """

    def __init__(self, settings: Settings, url: str):
        super().__init__(settings, connect_async(url, _MAX_CONNECTIONS), connect_async(url, _MAX_FOLLOWERS))
        self._replies = ReplyReader(connect_async(url, 1))
        self._ask = self._redis.register_script(lua_scripts.ASK_QUERY)
        self._next_worker_check = 0.0

    @classmethod
    @asynccontextmanager
    async def connect(cls, settings: Settings, asks: bool = True) -> "AsyncIterator[Broker]":
        """Yields a broker on the Redis of `settings`, and closes it at the end.

        An embedded Redis is started; another one need not answer yet.

        Args:
            settings: The settings of the process.
            asks: Whether replies are read, without which no query can be asked.
        """
        stack = ExitStack()
        try:
            url = await asyncio.to_thread(stack.enter_context, redis_url(settings))
            broker = cls(settings, url)
            if asks:
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
        await call_redis(self._probe(), PROBE_WAIT_S)

    async def find_eviction(self) -> str | None:
        """Returns a warning if Redis may remove keys that it still needs, or None if it does not or does not tell."""
        try:
            return describe_eviction(await call_redis(cast("Any", self._redis.info("memory"))))
        except RedisUnavailable:
            return None

    async def list_workers(self, limit_s: float = REDIS_WAIT_S) -> list[Heartbeat]:
        """Returns the latest heartbeats of the live workers, in the order of their ids.

        Args:
            limit_s: Longest time in seconds to wait for Redis.
        """
        return await call_redis(self._read_heartbeats(), limit_s)

    async def read_load(self) -> QueueLoad:
        """Returns how much work waits, and who is alive to do it."""

        async def read() -> QueueLoad:
            return await read_queue_load(self._redis, await self._read_heartbeats())

        return await call_redis(read(), PROBE_WAIT_S)

    async def _probe(self) -> None:
        await cast("Any", self._redis.zadd(redis_keys.QUERY_LEASES, {"": 0}, xx=True))

    async def _read_heartbeats(self) -> list[Heartbeat]:
        return await read_heartbeats(self._redis, self._settings.heartbeat_ttl_s)

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
        reply = await self._ask_worker(self._message(query, request_id, timeout_s, priority), timeout_s, lane)
        if reply.answer is None:
            raise from_code("", "the answer is empty")
        return reply.answer

    async def ask_totals(
        self, query: ServiceQuery, spec: TotalsSpec, request_id: str, timeout_s: float, lane: str = ""
    ) -> InfluenceTotals:
        """Has a worker sum the scores of all documents for a query; `spec` says how. Otherwise it is as `ask`."""
        message = self._message(query, request_id, timeout_s).model_copy(update={"totals": spec})
        reply = await self._ask_worker(message, timeout_s, lane)
        if reply.totals is None:
            raise from_code(
                "", "the answer has no totals; check that all workers have the version of the web process"
            )
        return reply.totals

    def _message(
        self, query: ServiceQuery, request_id: str, timeout_s: float, priority: Priority = "interactive"
    ) -> Query:
        now = time.time()
        return Query(
            query_id=uuid4().hex,
            reply_to=self._replies.stream,
            request_id=request_id,
            traceparent=tracing.traceparent(),
            sent_at=now,
            deadline=now + timeout_s,
            priority=priority,
            query=query,
        )

    async def _ask_worker(self, message: Query, timeout_s: float, lane: str) -> Reply:
        """Returns the reply to a query, which has no problem; the errors are those of `ask`."""
        query_id, started = message.query_id, time.monotonic()

        def remaining_s(extra_s: float = GRACE_S) -> float:
            return max(0.0, started + timeout_s + extra_s - time.monotonic())

        withdrawal: asyncio.Task[RedisUnavailable | None] | None = None
        with self._replies.expect_reply(query_id) as future:
            await self._require_worker(min(REDIS_WAIT_S, remaining_s()))
            await self._enqueue(message, lane, min(REDIS_WAIT_S, remaining_s()))
            try:
                await asyncio.wait([future], timeout=remaining_s(extra_s=0))
            finally:
                if not future.done():
                    withdrawal = run_in_background(self._withdraw(message))
                    await asyncio.wait([withdrawal], timeout=min(GRACE_S, remaining_s()))
            if withdrawal is not None and not future.done():
                raise self._explain_silence(withdrawal, timeout_s)
            reply = future.result()
        if (problem := reply.problem) is None:
            return reply
        error = from_code(problem.code, problem.detail)
        if isinstance(error, IndexNotFound):
            active_jobs = await self.active_jobs(min(REDIS_WAIT_S, remaining_s()))
            if job_id := active_jobs.get(message.query.index):
                error = IndexBusy(f"index {message.query.index!r} is being built: see GET /jobs/{job_id}")
        raise error

    def _explain_silence(
        self, withdrawal: "asyncio.Task[RedisUnavailable | None]", timeout_s: float
    ) -> BergsonError:
        """Returns the error for a query without an answer: Redis is silent or full, or no worker was quick enough."""
        if self._replies.failure:
            return RedisUnavailable.because(self._replies.failure)
        if not withdrawal.done():
            return RedisUnavailable.because("it has stopped answering while a worker was awaited")
        late = DeadlineExceeded(f"no answer within {timeout_s:g} s; ask again or wait longer")
        return withdrawal.result() or late

    async def _require_worker(self, limit_s: float = REDIS_WAIT_S) -> None:
        """Raises `NoWorker` if no worker is alive. After it has seen one, it does not look again for a second."""

        async def count_workers() -> int:
            workers = await self._read_heartbeats()
            if not workers:
                # The heartbeats of live workers do not arrive in a Redis that accepts no writes.
                await self._probe()
            return len(workers)

        if time.monotonic() >= self._next_worker_check:
            if not await call_redis(count_workers(), limit_s):
                raise NoWorker(NO_WORKER)
            self._next_worker_check = time.monotonic() + _WORKER_CHECK_INTERVAL_S

    async def _enqueue(self, message: Query, lane: str, limit_s: float) -> None:
        arguments = ask_query_arguments(message, lane, self._settings)
        try:
            outcome = await call_redis(cast("Any", self._ask(**arguments)), limit_s)
        except (asyncio.CancelledError, RedisUnavailable):
            run_in_background(self._withdraw(message))  # the query may have arrived all the same
            raise
        if outcome != "asked":
            max_wait_s, max_queries = self._settings.max_queue_wait_s, self._settings.max_queued_queries
            reason = (
                f"{max_queries} queries wait"
                if outcome == "full"
                else f"a query has waited for {max_wait_s:g} s"
            )
            raise QueueFull(f"{reason} already: try again in a second, or start more workers")

    async def _withdraw(self, message: Query) -> RedisUnavailable | None:
        """Takes a query off the queue. A worker that has taken it notices before its next long step.

        Returns:
            What is wrong with Redis, which may also be why the answer has not come: for example that it is full.
        """
        query_id = message.query_id
        waiting, since, _ = waiting_keys(message.priority)
        try:
            with check_replies():
                async with self._redis.pipeline(transaction=False) as pipe:
                    pipe.zrem(waiting, query_id)
                    pipe.zrem(since, query_id)
                    pipe.delete(query_key(query_id))
                    pipe.zadd(redis_keys.QUERY_LEASES, {"": 0}, xx=True)  # what `ping` sends
                    *removals, write = await pipe.execute(raise_on_error=False)
            for error in filter(lambda reply: isinstance(reply, RedisError), removals):
                raise error
        except RedisError as error:
            trouble = unavailable_error(error)
            logger.warning("query %s stays in the queue until its deadline: %s", query_id, trouble)
            return trouble
        return unavailable_error(write) if isinstance(write, RedisError) else None

    async def estimate(self, job: EstimateJob, timeout_s: float, lane: str = "") -> Estimate:
        """Has a worker estimate the cost of a build.

        The job is cancelled when nobody waits for it any more.

        Args:
            job: The job.
            timeout_s: Seconds to wait for the estimate.
            lane: Id of the API key.

        Raises:
            NoWorker: No worker is alive.
            QueueFull: Too many follow jobs.
            DeadlineExceeded: There was no estimate within `timeout_s` seconds.
            Cancelled: Somebody cancelled the job.
            RedisUnavailable: Redis does not answer.
            BergsonError: Whatever error the worker met.
        """
        await self._require_worker(min(REDIS_WAIT_S, timeout_s + GRACE_S))
        estimating = asyncio.create_task(self._submit_estimate(job, lane))
        try:
            await asyncio.wait([estimating], timeout=timeout_s)
            if not estimating.done():
                raise DeadlineExceeded(
                    f"no estimate within {timeout_s:g} s; the workers may be busy (GET /jobs): wait longer, or ask "
                    "later"
                )
            return estimating.result()
        finally:
            ending = run_in_background(self._end_estimate(estimating, job.job_id))
            await asyncio.wait([ending], timeout=GRACE_S)

    async def _submit_estimate(self, job: EstimateJob, lane: str) -> Estimate:
        with self.count_follower():
            await self.submit(job, lane=lane)
            async for _, record in self.iter_events(job.job_id):
                if record.estimate is not None:
                    return record.estimate
                if record.error is not None:
                    raise from_code(record.error.code, record.error.detail)
        raise Cancelled("the estimate was cancelled")

    async def _end_estimate(self, estimating: asyncio.Task[Estimate], job_id: str) -> None:
        await cancel_and_wait(estimating)
        try:
            await self.cancel(job_id)
        except BergsonError as error:
            logger.warning("the estimate %s was not cancelled: %s", job_id, error)
