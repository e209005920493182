"""`ReplyReader`: receives the workers' replies to the queries of this web process."""

import asyncio
import logging
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, cast
from uuid import uuid4

from pydantic import ValidationError
from redis.asyncio import Redis

from bergson_core.errors import BergsonError, RedisUnavailable
from service.queue.redis_calls import PROBE_WAIT_S, call_redis, cancel_and_wait, translate_redis_errors
from worker.messages import Reply
from worker.queue import redis_keys

logger = logging.getLogger(__name__)

BLOCK_MS = 3000
"""Longest time that a command waits inside Redis; the Redis client itself gives up after 5 s."""

_BEFORE_FIRST_ENTRY = "0"

StreamEntries = list[tuple[str, list[tuple[str, dict[str, str]]]]]
"""What XREAD returns: for each stream its name and its entries, each an id and fields."""


class ReplyReader:
    """Reads the stream of this process's replies in a task, and hands each reply to whoever waits for it.

    The task reads the stream from its beginning each time, and deletes what it has read. If it remembered the id of the
    latest reply, it would wait for ids of the future once the clock of Redis has stepped back, or once a Redis with a
    smaller clock has taken the place of the first one.

    Attributes:
        stream: Key of the stream, to which workers send their replies.
        failure: Why the task cannot read the stream at the moment, or None. It tries again until it can.
    """

    def __init__(self, redis: Redis):
        self.stream = redis_keys.REPLIES_PREFIX + uuid4().hex
        self.failure: str | None = None
        self._redis = redis
        self._futures: dict[str, asyncio.Future[Reply]] = {}
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Starts the task that reads the stream."""
        self._task = asyncio.create_task(self._read(), name="replies")
        self._task.add_done_callback(self._fail_waiting)

    async def close(self) -> None:
        """Stops the task, deletes the stream and closes the connection."""
        if self._task is not None:
            await cancel_and_wait(self._task)
        with suppress(RedisUnavailable):
            await call_redis(cast("Any", self._redis.delete(self.stream)), PROBE_WAIT_S)
        await self._redis.aclose()

    @contextmanager
    def expect_reply(self, query_id: str) -> "Iterator[asyncio.Future[Reply]]":
        """Yields a future for the reply to a query.

        The future raises `RedisUnavailable` if the reading task dies.

        Raises:
            RedisUnavailable: The reading task has died.
        """
        future = asyncio.get_running_loop().create_future()
        if self._task is None or self._task.done():
            raise RedisUnavailable.because("the task that reads answers has ended")
        self._futures[query_id] = future
        try:
            yield future
        finally:
            del self._futures[query_id]

    async def _read(self) -> None:
        pause_s = 0.1
        while True:
            try:
                await self._read_once()
                pause_s = 0.1
            except RedisUnavailable as error:
                if self.failure is None:
                    logger.warning("replies cannot be read, trying again: %s", error)
                self.failure = str(error.__cause__)
                await asyncio.sleep(pause_s)
                pause_s = min(2 * pause_s, 2.0)

    async def _read_once(self) -> None:
        with translate_redis_errors():
            streams = await self._redis.xread({self.stream: _BEFORE_FIRST_ENTRY}, block=BLOCK_MS)
            entries = [entry for _, entries in cast("StreamEntries", streams or []) for entry in entries]
            replies = {entry_id: fields.get("reply", "") for entry_id, fields in entries}
        self.failure = None
        for raw in replies.values():
            self._deliver(raw)
        if replies:
            with translate_redis_errors():
                await self._redis.xdel(self.stream, *replies)

    def _deliver(self, raw: str) -> None:
        try:
            reply = Reply.model_validate_json(raw)
        except ValidationError as error:
            logger.error("a reply cannot be read: %s", error)
            for query_id, future in self._futures.items():
                if query_id in raw and not future.done():
                    future.set_exception(
                        BergsonError(
                            "the answer cannot be read: check that worker and web process have the same version"
                        )
                    )
            return
        future = self._futures.get(reply.query_id)
        if future is not None and not future.done():
            future.set_result(reply)

    def _fail_waiting(self, task: asyncio.Task[None]) -> None:
        """Fails all futures, because no reply will come any more."""
        if not task.cancelled():
            logger.error("the task that reads answers has died", exc_info=task.exception())
        for future in self._futures.values():
            if not future.done():
                future.set_exception(RedisUnavailable.because("the task that reads answers has ended"))
