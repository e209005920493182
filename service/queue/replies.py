"""The answers that this web process waits for: one stream, one task that reads it, a map of futures."""

import asyncio
import logging
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, cast
from uuid import uuid4

from pydantic import ValidationError
from redis import RedisError
from redis.asyncio import Redis

from bergson_core.errors import BergsonError, RedisUnavailable
from worker.messages import Reply
from worker.queue import redis_keys

logger = logging.getLogger(__name__)

BLOCK_MS = 3000
"""Longest wait inside Redis; the client itself gives up on an answer after 5 s."""

Streams = list[tuple[str, list[tuple[str, dict[str, str]]]]]
"""What XREAD gives: for each stream its name and its entries (id, fields)."""


@contextmanager
def translate_redis_errors() -> Iterator[None]:
    """Raises `RedisUnavailable` where Redis does not answer."""
    try:
        yield
    except RedisError as error:
        raise RedisUnavailable.because(str(error)) from error


async def cancel_and_wait(task: asyncio.Task[Any]) -> None:
    """Cancels a task until it has ended: redis-py sends by asyncio.wait_for, which in Python 3.11 may swallow it."""
    while not task.done():
        task.cancel()
        await asyncio.wait([task], timeout=0.1)


class ReplyReader:
    """The stream of this process's answers, the task that reads it, and who waits for what.

    `failure` says why the task cannot read at the moment; it tries again until it can.
    """

    def __init__(self, redis: Redis):
        self.stream = redis_keys.REPLIES_PREFIX + uuid4().hex
        self.failure: str | None = None
        self._redis = redis
        self._futures: dict[str, asyncio.Future[Reply]] = {}
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        self._task = asyncio.create_task(self._read(), name="replies")
        self._task.add_done_callback(self._fail_waiting)

    async def close(self) -> None:
        if self._task is not None:
            await cancel_and_wait(self._task)
        with suppress(RedisError):
            await self._redis.delete(self.stream)
        await self._redis.aclose()

    @contextmanager
    def expect_reply(self, query_id: str) -> "Iterator[asyncio.Future[Reply]]":
        """The future that gets the reply to `query_id`, or `RedisUnavailable` where none can come any more."""
        future = asyncio.get_running_loop().create_future()
        if self._task is None or self._task.done():
            raise RedisUnavailable.because("the task that reads answers has ended")
        self._futures[query_id] = future
        try:
            yield future
        finally:
            del self._futures[query_id]

    async def _read(self) -> None:
        last_id, pause_s = "0", 0.1
        while True:
            try:
                found = await self._redis.xread({self.stream: last_id}, block=BLOCK_MS)
                self.failure, pause_s = None, 0.1
                for _, entries in cast("Streams", found or []):
                    for _, fields in entries:
                        self._deliver(fields.get("reply", ""))
                    last_id = entries[-1][0]
                    await self._redis.xdel(self.stream, *(entry for entry, _ in entries))
            except RedisError as error:
                if self.failure is None:
                    logger.warning("answers cannot be read, trying again: %s", error)
                self.failure = str(error)
                await asyncio.sleep(pause_s)
                pause_s = min(2 * pause_s, 2.0)

    def _deliver(self, raw: str) -> None:
        try:
            reply = Reply.model_validate_json(raw)
        except ValidationError as error:
            logger.error("an answer cannot be read: %s", error)
            for query_id, future in self._futures.items():
                if query_id in raw and not future.done():
                    future.set_exception(
                        BergsonError("the answer cannot be read: is the worker of this version?")
                    )
            return
        future = self._futures.get(reply.query_id)
        if future is not None and not future.done():
            future.set_result(reply)

    def _fail_waiting(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled():
            logger.error("the task that reads answers has died", exc_info=task.exception())
        for future in self._futures.values():
            if not future.done():
                future.set_exception(RedisUnavailable.because("the task that reads answers has ended"))
