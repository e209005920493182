"""Answers the queries of a worker: waiting queries at once, and between them a step of a follow-up.

A follow-up is what is done after a search: candidates are rescored, results are verified, scores are summed.
"""

import logging
import time
from collections import defaultdict
from collections.abc import Sequence
from typing import TYPE_CHECKING

from redis import RedisError

from bergson_core.errors import BergsonError, Cancelled, DeadlineExceeded, InternalError
from bergson_core.schemas.results import Answer
from bergson_core.schemas.totals.results import InfluenceTotals
from worker.messages import Query, Reply
from worker.problem import Problem
from worker.process.error_boundary import problem_from_error, run_guarded
from worker.process.follow_up_task import FollowUpResult, FollowUpTask, next_follow_up
from worker.process.heartbeat import HeartbeatThread
from worker.process.index_cache import IndexCache
from worker.queue.job_queue import WorkerQueue
from worker.queue.redis_errors import unavailable_error
from worker.telemetry import instrumentation, logs

if TYPE_CHECKING:
    from bergson_core.attribution.index import AttributionIndex

logger = logging.getLogger(__name__)

_DEADLINE_PASSED = Problem(
    code=DeadlineExceeded.code, detail="the deadline passed before the query was computed"
)
_WITHDRAWN = Problem(code=Cancelled.code, detail="no client waits for the answer any more")


class QueryLoop:
    """Answers the queries of a queue.

    Args:
        queue: The queue to take queries from.
        index_cache: The open indexes, which answer the queries.
        heartbeat_thread: Renews the leases of the queries in hand.

    Replies that Redis does not take, because it is away or full, are sent again until the deadlines of their queries.

    Attributes:
        follow_ups: Follow-ups that have begun or wait, in the order of their queries.
    """

    def __init__(self, queue: WorkerQueue, index_cache: IndexCache, heartbeat_thread: HeartbeatThread):
        self._queue, self._index_cache, self._heartbeat_thread = queue, index_cache, heartbeat_thread
        self.follow_ups: list[FollowUpTask] = []
        self._unsent: list[tuple[Query, Reply]] = []

    def run_once(self, block_s: float = 0) -> bool:
        """Answers the waiting queries and takes a step of a follow-up; returns False if there was neither.

        Args:
            block_s: Seconds to wait for a query if there is nothing to do.
        """
        self._send([])
        has_answered = self._answer_waiting(0 if self.follow_ups else block_s)
        return self._step_follow_up() or has_answered

    def finish_follow_ups(self) -> None:
        """Completes all follow-ups; if Redis does not answer, another worker starts them again."""
        try:
            while self._step_follow_up():
                pass
            self._send([])
        except RedisError as error:
            logger.warning("follow-ups are left to another worker: %s", unavailable_error(error))

    def _answer_waiting(self, block_s: float) -> bool:
        """Answers the waiting queries, index by index; returns False if there were none."""
        queries = self._queue.queries.take(block_s)
        by_index: dict[str, list[Query]] = defaultdict(list)
        for query in queries:
            by_index[query.query.index].append(query)
        self._renew_leases_of(queries)
        failure: RedisError | None = None
        try:
            for name, group in by_index.items():
                with instrumentation.observe_queries(name, group):
                    replies = self._answer(name, group)
                    try:
                        self._send(replies)
                    except RedisError as error:
                        failure = error  # the other queries are in hand, and are answered all the same
        finally:
            self._renew_leases_of([])
        if failure is not None:
            raise failure
        return bool(queries)

    def _renew_leases_of(self, queries: Sequence[Query]) -> None:
        """Has the heartbeat thread renew the leases of these queries and of others that this worker has in hand.

        Those are the queries whose replies are not sent yet, and those with a follow-up.
        """
        unsent = (query for query, _ in self._unsent)
        self._heartbeat_thread.queries = [*queries, *unsent, *(task.query for task in self.follow_ups)]

    def _answer(self, name: str, group: list[Query]) -> list[tuple[Query, Reply]]:
        """Returns replies to queries of one index. Queries whose deadline has passed are not computed.

        A query with a follow-up gets no reply here, so that the other queries do not wait for it: it is added to
        `follow_ups`.
        """
        now = time.time()
        waiting = [query for query in group if query.deadline > now]
        replies = [_make_reply(query, _DEADLINE_PASSED) for query in group if query.deadline <= now]
        if not waiting:
            return replies
        index = run_guarded(lambda: self._index_cache.get(name))
        if isinstance(index, Problem):
            return replies + [_make_reply(query, index) for query in waiting]
        for query, outcome in zip(waiting, _attribute(index, waiting), strict=True):
            if isinstance(outcome, Problem):
                replies.append(_make_reply(query, outcome))
            elif query.has_follow_up:
                self.follow_ups.append(FollowUpTask(query, index, outcome))
            else:
                replies.append(_make_reply(query, _with_queue_time(outcome, query.sent_at)))
        return replies

    def _step_follow_up(self) -> bool:
        """Takes a step of a follow-up, interactive queries first; returns False if there is none.

        A follow-up whose deadline has passed, or whose query was withdrawn, is ended instead.
        """
        if not self.follow_ups:
            return False
        task = next_follow_up(self.follow_ups)
        if task.query.deadline <= time.time():
            outcome = _DEADLINE_PASSED
        elif not self._queue.queries.is_awaited(task.query):
            outcome = _WITHDRAWN
        else:
            with instrumentation.observe_follow_up_step(task.query):
                outcome = run_guarded(task.step)
        if outcome is not None:
            self._finish_follow_up(task, outcome)
        return True

    def _finish_follow_up(self, task: FollowUpTask, outcome: FollowUpResult | Problem) -> None:
        self.follow_ups.remove(task)
        if not isinstance(outcome, Problem):
            outcome = _with_queue_time(outcome, task.query.sent_at)
        with instrumentation.observe_queries(task.query.query.index, [task.query]):
            self._send([_make_reply(task.query, outcome)])
        self._renew_leases_of([])

    def _send(self, replies: Sequence[tuple[Query, Reply]]) -> None:
        """Sends replies, and those that could not be sent before, except for queries whose deadline has passed."""
        late = [query.query_id for query, _ in self._unsent if query.deadline <= time.time()]
        if late:
            logger.warning(
                "replies dropped, because the deadlines of their queries have passed: %s", ", ".join(late)
            )
        self._unsent = [entry for entry in self._unsent if entry[0].query_id not in late] + list(replies)
        if self._unsent:
            self._queue.queries.send_replies(self._unsent)
            instrumentation.record_replies([reply for _, reply in self._unsent], self._queue.metrics)
            self._unsent = []


def _attribute(index: "AttributionIndex", queries: Sequence[Query]) -> list[Answer | Problem]:
    """Returns for each query its answer, before any follow-up, or the problem that it met.

    If the queries fail together for a reason that nobody expected, they are answered one by one: only the query at
    fault has a problem then.
    """
    attribution_queries = [query.query.for_search() for query in queries]
    outcomes = run_guarded(lambda: index.attribute(attribution_queries))
    if not isinstance(outcomes, Problem):
        return [
            problem_from_error(outcome) if isinstance(outcome, BergsonError) else outcome
            for outcome in outcomes
        ]
    if len(queries) == 1 or outcomes.code != InternalError.code:
        return [outcomes for _ in queries]
    alone: list[Answer | Problem] = []
    for query in queries:
        with logs.context(request_ids=[query.request_id]):
            alone += _attribute(index, [query])
    return alone


def _with_queue_time(answer: FollowUpResult, sent_at: float) -> FollowUpResult:
    """Returns the answer with the whole time since the query was sent; time not spent computing was spent waiting."""
    timing = answer.timing_ms
    total = max(timing.total, 1000 * (time.time() - sent_at))
    timing = timing.model_copy(update={"queue": total - timing.total, "total": total})
    return answer.model_copy(update={"timing_ms": timing})


def _make_reply(query: Query, outcome: FollowUpResult | Problem) -> tuple[Query, Reply]:
    if isinstance(outcome, Problem):
        return query, Reply(query_id=query.query_id, problem=outcome)
    if isinstance(outcome, InfluenceTotals):
        return query, Reply(query_id=query.query_id, totals=outcome)
    return query, Reply(query_id=query.query_id, answer=outcome)
