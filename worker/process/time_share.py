"""Divides a worker's time between queries and jobs, so that neither waits for long while the other has much to do.

The worker keeps account of the seconds that each side has had while both wanted the worker. The side that is behind its
share has the next turn (start-time fair queueing between two queues, as in `worker.queue.query_queue`, by the clock).
A side that wants nothing saves nothing up: once no query waits, or no job, the account is settled. Follow-ups count as
queries: `QueryLoop.run_once` takes a step of one after each batch of queries.
"""

import time
from collections.abc import Callable
from typing import Final

from bergson_core.schemas.results import Progress
from worker.process.query_loop import QueryLoop

MAX_DEBT_S: Final = 10.0
"""Neither side is owed more seconds than these, so that one long step of the other does not hold it up for longer."""


class TimeShare:
    """Answers queries in turn with the work of jobs.

    Args:
        query_loop: Answers the queries.
        job_share: Part of the time, between 0 and 1, that a job gets while queries wait all the time.
        patience_s: Seconds that queries may have beyond their share before it is a job's turn.
    """

    def __init__(self, query_loop: QueryLoop, job_share: float, patience_s: float):
        self._query_loop, self._patience_s = query_loop, patience_s
        self._query_s_per_job_s = (1 - job_share) / job_share
        self._ahead_s = 0.0
        """Seconds that queries have had beyond their share; negative if they are owed some."""
        self._job_resumed_at = 0.0
        self._last_step: tuple[str, int] | None = None

    @property
    def is_jobs_turn(self) -> bool:
        """Whether a job should have the worker although queries wait as well."""
        return self._ahead_s >= self._patience_s

    def answer_queries(self, block_s: float = 0) -> bool:
        """Answers the waiting queries, or waits so many seconds for one; returns False if there was none."""
        started = time.monotonic()
        has_answered = self._query_loop.run_once(block_s)
        if has_answered:
            self._ahead_s = min(self._ahead_s + time.monotonic() - started, MAX_DEBT_S)
        else:
            self._ahead_s = max(self._ahead_s, 0.0)
        return has_answered

    def forgive_job_debt(self) -> None:
        """Settles the account: jobs are owed nothing for the time before."""
        self._ahead_s = min(self._ahead_s, 0.0)

    def resume_job(self) -> None:
        """Begins to count the time of a job."""
        self._job_resumed_at = time.monotonic()

    def pause_job(self) -> None:
        """Counts the time since the job was resumed."""
        seconds = (time.monotonic() - self._job_resumed_at) * self._query_s_per_job_s
        self._ahead_s = max(self._ahead_s - seconds, -MAX_DEBT_S)

    def yield_to_queries(self, progress: Progress, is_stopping: Callable[[], bool]) -> None:
        """Answers the waiting queries after a step of a job, for as long as it is their turn.

        Args:
            progress: The progress of the job. If it is the same as before, the step goes on in a thread of its own,
                beside the queries, so that the job is owed nothing for them.
            is_stopping: Returns whether the worker is to stop.

        Raises:
            RedisError: Redis does not answer.
        """
        step = (progress.stage, progress.done)
        if step == self._last_step:
            self.forgive_job_debt()
        self._last_step = step
        self.pause_job()
        try:
            while not self.is_jobs_turn and not is_stopping() and self.answer_queries():
                pass
        finally:
            self.resume_job()
