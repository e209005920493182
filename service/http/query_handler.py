"""A question on its way: who may ask it, whether it was asked before, and who still waits for the answer."""

import asyncio
import time
from collections.abc import Coroutine
from dataclasses import dataclass
from typing import Any, TypeVar

from fastapi import Request

from bergson_core.errors import Cancelled, Forbidden, IndexNotFound
from bergson_core.schemas.results import Answer, TimingMs
from bergson_core.storage.takedown_log import TakedownLog
from service.auth.api_keys import Caller
from service.http.metrics import WebMetrics
from service.indexes.answer_cache import AnswerCache, make_cache_key
from service.queue.broker import Broker
from service.queue.replies import cancel_and_wait
from service.settings import ServiceSettings
from worker.messages import Priority, ServiceQuery

T = TypeVar("T")


@dataclass(frozen=True)
class QueryHandler:
    """Asks in the name of `caller`, in the course of one request."""

    broker: Broker
    settings: ServiceSettings
    cache: AnswerCache
    metrics: WebMetrics
    caller: Caller
    request_id: str

    async def answer(
        self, query: ServiceQuery, timeout_s: float, priority: Priority = "interactive"
    ) -> Answer:
        """The answer, from the cache or from a worker, without what is taken down by now.

        Raises `IndexNotFound` and `Forbidden` for what the caller may not ask, and what `Broker.ask` raises.
        """
        query, started = self._restrict_to_permissions(query), time.perf_counter()
        index = self.settings.indexes_dir / query.index
        log = TakedownLog(index)
        log.skip_to_end()
        key = make_cache_key(index, log, query)
        known = self.cache.get(key)
        self.metrics.cache_requests.labels("miss" if known is None else "hit").inc()
        if known is not None:
            timing = TimingMs(gradient=0, search=0, total=1000 * (time.perf_counter() - started))
            return known.model_copy(update={"timing_ms": timing})
        answer = await self.broker.ask(query, self.request_id, timeout_s, self.caller.id, priority)
        gone = {line["id"] for line in log.read_new_lines()}  # meanwhile: the worker may not have seen them
        if gone:
            return answer.without(gone)
        self.cache.put(key, answer)
        return answer

    def _restrict_to_permissions(self, query: ServiceQuery) -> ServiceQuery:
        """The query as the caller may ask it: without text no tokens, no metadata, nor a filter that finds it out."""
        if not self.caller.can_see(query.index):
            raise IndexNotFound.named(query.index)
        if self.caller.text:
            return query
        if query.filter is not None:
            raise Forbidden("this key sees no metadata: ask without `filter`")
        return query.model_copy(update={"include": tuple({"modules"}.intersection(query.include))})


async def run_while_connected(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """What `work` returns. It is cancelled where the client goes: nobody would read the answer."""
    task, gone = asyncio.create_task(work), asyncio.create_task(_wait_for_disconnect(request))
    try:
        await asyncio.wait([task, gone], return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise Cancelled("the client has closed the connection")
        return task.result()
    finally:
        await cancel_and_wait(task)
        await cancel_and_wait(gone)


async def _wait_for_disconnect(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
