"""The queries of a worker: what waits is answered at once, and verifications go on between, a step at a time."""

import logging
import time
from collections import defaultdict
from collections.abc import Sequence
from typing import TYPE_CHECKING

from redis import RedisError

from bergson_core.errors import BergsonError, Cancelled, DeadlineExceeded
from bergson_core.schemas.results import Answer
from worker.messages import Problem, Query, Reply
from worker.process.error_boundary import problem_from_error, run_guarded
from worker.process.heartbeat import HeartbeatThread
from worker.process.index_cache import IndexCache
from worker.process.verification_task import VerificationTask, next_verification
from worker.queue.job_queue import WorkerQueue
from worker.telemetry import instrumentation

if TYPE_CHECKING:
    from bergson_core.attribution.index import AttributionIndex

logger = logging.getLogger(__name__)

_LATE = Problem(code=DeadlineExceeded.code, detail="the deadline passed before the query was computed")


class QueryLoop:
    """Answers the queries of `queue` from the indexes of `residency`; `pulse` is told which of them are held."""

    def __init__(self, queue: WorkerQueue, residency: IndexCache, pulse: HeartbeatThread):
        self._queue, self._residency, self._pulse = queue, residency, pulse
        self.verifying: list[VerificationTask] = []

    def run_once(self, block_s: float = 0) -> bool:
        """Answers what waits, and takes a step of a verification; False where there is neither."""
        served = self._serve(0 if self.verifying else block_s)
        return self._verify() or served

    def _serve(self, block_s: float) -> bool:
        """Answers what waits, index by index; False where nothing does."""
        taken = self._queue.queries.take(block_s)
        by_index: dict[str, list[Query]] = defaultdict(list)
        for one in taken:
            by_index[one.query.index].append(one)
        self._hold(taken)
        try:
            for name, group in by_index.items():
                with instrumentation.observe_queries(name, group):
                    replies = self._answer(name, group)
                    self._queue.queries.send_replies(replies)
                    instrumentation.record_replies([reply for _, reply in replies], self._queue.metrics)
        finally:
            self._hold()
        return bool(taken)

    def _hold(self, taken: Sequence[Query] = ()) -> None:
        """Says whose leases are to be renewed: of those that were taken, and of verifications."""
        self._pulse.queries = [*taken, *(one.query for one in self.verifying)]

    def _answer(self, name: str, group: list[Query]) -> list[tuple[Query, Reply]]:
        """A reply to each query; those that nobody waits for by now are not computed.

        What is to be verified too is put aside, so that the others do not wait for it.
        """
        now = time.time()
        waiting = [query for query in group if query.deadline > now]
        replies = [_reply(query, _LATE) for query in group if query.deadline <= now]
        if not waiting:
            return replies
        queries = [one.query.model_copy(update={"verify": None}) for one in waiting]

        def answered() -> "tuple[AttributionIndex, list[Answer | BergsonError]]":
            index = self._residency.get(name)
            return index, index.attribute(queries)

        found = run_guarded(answered)
        if isinstance(found, Problem):
            return replies + [_reply(query, found) for query in waiting]
        index, outcomes = found
        for query, outcome in zip(waiting, outcomes, strict=True):
            if isinstance(outcome, BergsonError):
                replies.append(_reply(query, problem_from_error(outcome)))
            elif query.query.verify is not None:
                self.verifying.append(VerificationTask(query, index, outcome))
            else:
                replies.append(_reply(query, _timed(outcome, query.sent_at)))
        return replies

    def _verify(self) -> bool:
        """Takes a step of a verification, those of single questions first; False where there is none.

        One that nobody waits for any more, since it is late or was withdrawn, is not gone on with.
        """
        if not self.verifying:
            return False
        one = next_verification(self.verifying)
        if one.query.deadline <= time.time():
            outcome = _LATE
        elif not self._queue.queries.is_awaited(one.query):
            outcome = Problem(code=Cancelled.code, detail="nobody waits for the answer any more")
        else:
            with instrumentation.observe_verification_step(one.query):
                outcome = run_guarded(one.step)
        if outcome is not None:
            self.verifying.remove(one)
            if isinstance(outcome, Answer):
                outcome = _timed(outcome, one.query.sent_at)
            with instrumentation.observe_queries(one.query.query.index, [one.query]):
                reply = _reply(one.query, outcome)
                self._queue.queries.send_replies([reply])
                instrumentation.record_replies([reply[1]], self._queue.metrics)
            self._hold()
        return True

    def finish_verifications(self) -> None:
        """Brings what is under way to its end; where Redis does not answer, another worker begins it anew."""
        try:
            while self._verify():
                pass
        except RedisError as error:
            logger.warning("verifications are left to another worker: %s", error)


def _timed(answer: Answer, sent_at: float) -> Answer:
    """With the time since the query was sent; what was not spent on computing was spent waiting."""
    timing = answer.timing_ms
    total = max(timing.total, 1000 * (time.time() - sent_at))
    timing = timing.model_copy(update={"queue": total - timing.total, "total": total})
    return answer.model_copy(update={"timing_ms": timing})


def _reply(query: Query, outcome: Answer | Problem) -> tuple[Query, Reply]:
    query_id = query.query_id
    if isinstance(outcome, Problem):
        return query, Reply(query_id=query_id, problem=outcome)
    return query, Reply(query_id=query_id, answer=outcome)
