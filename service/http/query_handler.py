"""Answers a query in the course of a request: checks permissions, looks into the cache, asks a worker."""

import asyncio
import time
from collections.abc import Coroutine, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from fastapi import Request

from bergson_core.errors import BergsonError, Cancelled, DeadlineExceeded, Forbidden, IndexNotFound
from bergson_core.schemas.results import Answer, TimingMs
from bergson_core.schemas.totals.results import InfluenceTotals
from bergson_core.schemas.totals.spec import TotalsSpec
from bergson_core.storage.takedown_log import TakedownLog
from service.auth.api_keys import Caller
from service.auth.texts import without_texts
from service.http.metrics import WebMetrics
from service.http.problems import make_problem
from service.indexes.answer_cache import AnswerCache, make_cache_key
from service.queue.broker import Broker
from service.queue.redis_calls import cancel_and_wait
from service.schemas import AttributeResponse, ProblemDetails
from service.settings import ServiceSettings
from worker.messages import Priority, ServiceQuery

T = TypeVar("T")
_MAX_BATCH_CONCURRENCY = 64
"""Most queries of a batch that are in the queue at once. The others wait here, so that a batch does not fill it."""


@dataclass(frozen=True)
class QueryHandler:
    """Answers queries in the name of `caller`, in the course of one request."""

    broker: Broker
    settings: ServiceSettings
    cache: AnswerCache
    metrics: WebMetrics
    caller: Caller
    request_id: str

    async def answer(
        self, query: ServiceQuery, timeout_s: float, priority: Priority = "interactive"
    ) -> Answer:
        """Returns the answer to a query, from the cache or from a worker, without documents taken down meanwhile.

        Args:
            query: The query.
            timeout_s: Seconds to wait for a worker's answer.
            priority: The queue in which the query waits; workers prefer `interactive` queries.

        Raises:
            IndexNotFound: The caller may not see the index, or there is none.
            Forbidden: The caller may not filter by metadata.
            BergsonError: Whatever `Broker.ask` raises.
        """
        answer = await self._answer(self.restrict_to_permissions(query), timeout_s, priority)
        return answer if self.caller.text else without_texts(answer)

    async def _answer(self, query: ServiceQuery, timeout_s: float, priority: Priority) -> Answer:
        started = time.perf_counter()
        index = self.settings.indexes_dir / query.index
        log = TakedownLog(index)
        log.skip_to_end()
        key = make_cache_key(index, log, query)
        cached = self.cache.get(key)
        self.metrics.cache_requests.labels("miss" if cached is None else "hit").inc()
        if cached is not None:
            timing = TimingMs(gradient=0, search=0, total=1000 * (time.perf_counter() - started))
            return cached.model_copy(update={"timing_ms": timing})
        answer = await self.broker.ask(query, self.request_id, timeout_s, self.caller.id, priority)
        # The worker may have answered before it read the latest takedowns.
        taken_down = {line["id"] for line in log.read_new_lines()}
        if taken_down:
            return answer.without(taken_down)
        self.cache.put(key, answer)
        return answer

    async def sum_scores(self, query: ServiceQuery, spec: TotalsSpec, timeout_s: float) -> InfluenceTotals:
        """Returns the scores of all documents for a query, summed by a metadata column.

        Args:
            query: The query.
            spec: How the scores are summed.
            timeout_s: Seconds to wait for a worker's answer.

        Raises:
            IndexNotFound: The caller may not see the index, or there is none.
            Forbidden: The caller may see no metadata, and so no values of a column.
            BergsonError: Whatever `Broker.ask_totals` raises.
        """
        query = self.restrict_to_permissions(query)
        if not self.caller.text:
            raise Forbidden("this key sees no metadata, and totals are by the values of a metadata column")
        return await self.broker.ask_totals(query, spec, self.request_id, timeout_s, self.caller.id)

    async def answer_batch(
        self, queries: Sequence[ServiceQuery], timeout_s: float, priority: Priority = "batch"
    ) -> list[AttributeResponse | ProblemDetails]:
        """Answers many queries at once.

        Args:
            queries: The queries.
            timeout_s: Seconds to wait for all answers.
            priority: The queue in which the queries wait; those of a `batch` give way to single ones.

        Returns:
            For each query, in the order of the queries, its answer or the problem that it met.
        """
        deadline, slots = time.monotonic() + timeout_s, asyncio.Semaphore(_MAX_BATCH_CONCURRENCY)

        async def answer_one(query: ServiceQuery) -> AttributeResponse | ProblemDetails:
            async with slots:
                try:
                    remaining_s = deadline - time.monotonic()
                    if remaining_s <= 0:
                        raise DeadlineExceeded(
                            f"not sent within {timeout_s:g} s; send fewer queries at once, or raise timeout_s"
                        )
                    answer = await self.answer(query, remaining_s, priority)
                    return AttributeResponse.from_answer(answer, self.request_id)
                except BergsonError as error:
                    return make_problem(error.code, str(error), self.request_id)

        # If one task fails or the group is cancelled, the group cancels the other tasks.
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(answer_one(query)) for query in queries]
        return [task.result() for task in tasks]

    def restrict_to_permissions(self, query: ServiceQuery) -> ServiceQuery:
        """Returns the query as the caller may ask it.

        A caller who may see no text gets neither tokens, words nor metadata. They can neither filter, because a filter
        would reveal metadata, nor order by words, because the order would reveal which words a document has.

        Raises:
            IndexNotFound: The caller may not see the index.
            Forbidden: The caller may not filter by metadata, or not order by words.
        """
        if not self.caller.can_see(query.index):
            raise IndexNotFound.for_name(query.index)
        if self.caller.text:
            return query
        if query.filter is not None:
            raise Forbidden("this key sees no metadata: ask without `filter`")
        if query.groups_by_column:
            raise Forbidden(
                "this key sees no metadata: group by `document` or `near_duplicates`, or not at all"
            )
        if query.order != "influence":
            raise Forbidden(f"this key sees no texts: ask without the order {query.order!r}")
        return query.model_copy(
            update={"include": tuple(part for part in query.include if part in ("modules", "background"))}
        )


async def run_while_connected(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """Runs a coroutine, and cancels it if the client disconnects, because nobody would read the answer.

    Args:
        request: The request, whose body has been read.
        work: The coroutine.

    Returns:
        The coroutine's result.

    Raises:
        Cancelled: The client has disconnected.
    """
    task, disconnect = asyncio.create_task(work), asyncio.create_task(_wait_for_disconnect(request))
    try:
        await asyncio.wait([task, disconnect], return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise Cancelled("the client has closed the connection")
        return task.result()
    finally:
        await cancel_and_wait(task)
        await cancel_and_wait(disconnect)


async def _wait_for_disconnect(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
